"""Give command lines that start a server to the engine's own parser; nothing is started.

    PYTHON serve_parsers.py {vllm,lmdeploy,sglang} --lines LINES.json --json REPORT.json

LINES.json is a list of commands, each a list of words. Report: [{model, tp, backend, trust_remote_code}] of each as
it was parsed, null for what the engine has no option for; a line that it does not take ends the driver with status 2.
"""

import argparse
import json
from pathlib import Path

from reporting import module_of_target


def vllm(words):
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.32
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser
    assert words[:2] == ["vllm", "serve"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:])
    return {"model": args.model_tag, "tp": args.tensor_parallel_size, "backend": None}, args


def lmdeploy(words):
    from lmdeploy.cli.cli import CLI
    from lmdeploy.cli.serve import SubCliServe

    if "serve" not in vars(lmdeploy):
        SubCliServe.add_parsers()
        lmdeploy.serve = True
    assert words[0] == "lmdeploy"
    args = CLI.parser.parse_args(words[1:])
    return {"model": args.model_path, "tp": args.tp, "backend": args.backend}, args


def sglang(words):
    """SGLang imports kernels to know its options: its prover's stubs stand in for those."""
    if "parser" not in vars(sglang):
        module_of_target("sglang/absent.py").stand_in(90, module_of_target("absent_packages.py"))
        from sglang.srt.server_args import ServerArgs

        sglang.parser = argparse.ArgumentParser("sglang.launch_server")
        ServerArgs.add_cli_args(sglang.parser)
    assert words[:3] == ["python", "-m", "sglang.launch_server"]
    args = sglang.parser.parse_args(words[3:])
    return {"model": args.model_path, "tp": args.tp_size, "backend": None}, args


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["vllm", "lmdeploy", "sglang"])
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    report = []
    for words in json.loads(asked.lines.read_text()):
        told, args = globals()[asked.engine](words)
        report.append({**told, "trust_remote_code": getattr(args, "trust_remote_code", None)})
    asked.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
