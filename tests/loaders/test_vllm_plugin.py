"""The plugin of vLLM against a stand-in of the modules that it extends; tests/engines serves with the real one."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import qbridge
from qbridge.commands.streaming import Stream
from qbridge.loaders import vllm as plugin
from support import ROOT, copy_fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers


class EngineArgs:
    """As vLLM's: what is typed, and the config that is made of it."""

    load_format, config_format = "auto", "auto"

    def __init__(self, tp=1, **formats):
        self.tensor_parallel_size = tp
        vars(self).update(formats)

    def create_model_config(self):
        return self.load_format, self.config_format


class HFConfigParser:
    """As vLLM's: config.json as transformers reads it."""

    def parse(self, model, trust_remote_code, revision=None, **options):
        from transformers import AutoConfig, PretrainedConfig

        config, _ = PretrainedConfig.get_config_dict(model, revision=revision)
        return config, AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, revision=revision)


class DefaultModelLoader:
    """As vLLM's: it knows its own options alone."""

    def __init__(self, load_config):
        if set(load_config.model_loader_extra_config) - {"enable_multithread_load", "num_threads"}:
            raise ValueError("Unexpected extra config keys")


def loading(**options):
    return SimpleNamespace(model_loader_extra_config=options)


@pytest.fixture
def vllm(monkeypatch):
    """What the plugin has registered, by kind."""
    registered, arguments = {}, type("EngineArgs", (EngineArgs,), {})

    def registering(kind):
        return lambda name: lambda made: registered.setdefault(kind, {}).update({name: made})

    parallel = SimpleNamespace(tensor_parallel_size=2)
    modules = {
        "vllm": {},
        "vllm.config": {"get_current_vllm_config": lambda: SimpleNamespace(parallel_config=parallel)},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": arguments},
        "vllm.model_executor": {},
        "vllm.model_executor.model_loader": {"register_model_loader": registering("loader")},
        "vllm.model_executor.model_loader.default_loader": {"DefaultModelLoader": DefaultModelLoader},
        "vllm.transformers_utils": {},
        "vllm.transformers_utils.config": {
            "HFConfigParser": HFConfigParser,
            "register_config_parser": registering("parser"),
        },
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    plugin.register()
    plugin.register()  # vLLM may call it again
    return SimpleNamespace(
        parser=registered["parser"]["qbridge"], loader=registered["loader"]["qbridge"], arguments=arguments
    )


def test_one_format_brings_the_other_and_the_size_is_noted(vllm):
    assert vllm.arguments(load_format="qbridge").create_model_config() == ("qbridge", "qbridge")
    assert vllm.arguments(config_format="qbridge", tp=4).create_model_config() == ("qbridge", "qbridge")
    assert plugin._SIZE == [4]
    assert vllm.arguments().create_model_config() == ("auto", "auto")


def test_the_config_is_that_of_the_plan(vllm, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_asym")
    vllm.arguments(load_format="qbridge").create_model_config()
    config, parsed = vllm.parser().parse(src, False)
    qbridge.convert(src, tmp_path / "out", "vllm")
    wanted, _ = HFConfigParser().parse(tmp_path / "out", False)
    assert config == wanted and config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert parsed.quantization_config == config["quantization_config"]
    again, _ = HFConfigParser().parse(src, False)  # transformers reads files as before
    assert again["quantization_config"]["quant_method"] == "gptq"


def test_the_weights_are_those_of_the_conversion_for_as_many_ranks(vllm, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_640")  # groups that two ranks share
    loader = vllm.loader(loading())
    before = sorted(tmp_path.rglob("*"))
    config = SimpleNamespace(model=str(src), revision=None)
    loader.download_model(config)
    given = {name: tensor.clone() for name, tensor in loader.get_all_weights(config, object())}
    assert sorted(tmp_path.rglob("*")) == before
    qbridge.convert(src, tmp_path / "out", "vllm", tp=2)
    stored = load_file(tmp_path / "out/model.safetensors")
    assert given.keys() == stored.keys() and all(torch.equal(given[name], stored[name]) for name in stored)


def test_a_rank_that_takes_its_share_reads_no_more(vllm, tmp_path, monkeypatch):
    src = copy_fixture(tmp_path, "gptq/llama_v1_asym")
    qbridge.convert(src, tmp_path / "out", "vllm", tp=2)
    stored = load_file(tmp_path / "out/model.safetensors")
    regions = []
    parts = Stream.parts
    monkeypatch.setattr(Stream, "parts", lambda *args: regions.append(args[1:]) or parts(*args))
    loader = vllm.loader(loading(memory=64_000_000))
    for name, tensor in loader.get_all_weights(SimpleNamespace(model=str(src), revision=None), object()):
        for dim in range(tensor.dim()):
            half = tensor.shape[dim] // 2
            share = tensor.narrow(dim, half, half)
            parameter = torch.empty_like(stored[name].narrow(dim, half, half))
            parameter.copy_(share)
            assert torch.equal(parameter, stored[name].narrow(dim, half, half))
            bounds = [(0, size) for size in tensor.shape]
            bounds[dim] = (half, 2 * half)
            assert regions.pop() == (name, tuple(bounds))
    assert not regions


def test_vllm_keeps_its_own_options(vllm):
    assert vllm.loader(loading(memory=10**9, num_threads=2)).memory == 10**9
    with pytest.raises(ValueError, match="Unexpected"):
        vllm.loader(loading(other=1))


def test_what_convert_refuses_is_refused_with_the_config(vllm, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_desc_act")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "vllm", tp=64)
    vllm.arguments(load_format="qbridge", tp=64).create_model_config()
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        vllm.parser().parse(src, False)
    assert str(excinfo.value) == str(refused.value)


def test_a_model_of_two_checkpoints_is_refused(vllm, tmp_path):
    config = SimpleNamespace(model=str(tmp_path), revision=None)
    with pytest.raises(qbridge.RefusedError) as excinfo:
        list(vllm.loader(loading()).get_all_weights(config, SimpleNamespace(secondary_weights=["audio"])))
    assert excinfo.value.findings[0].code == "QB712"


def test_what_is_imported_can_be_asked_for_its_dict(vllm):
    from llvmlite.binding import ffi

    assert not hasattr(ffi.lib, "__dict__") and ffi.lib.LLVMPY_GetVersionInfo is not None


def test_a_revision_stands_behind_the_name():
    assert plugin._source("org/name", "abc") == "org/name@abc"
    assert plugin._source("org/name", None) == plugin._source("org/name", "main") == "org/name"


def test_the_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points."vllm.general_plugins"]\nqbridge = "qbridge.loaders.vllm:register"' in text
