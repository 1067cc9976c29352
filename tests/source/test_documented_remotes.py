"""Commands of README and docs/remote.md that name a repository, over a Hub on the loopback."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from conftest import CASE
from documented import lines
from support import ROOT

TOKEN = "hf_" + "Secret" * 5
PAGES = {ROOT / "README.md", ROOT / "docs/remote.md"}
LINES = dict.fromkeys(
    line for page, line in lines("qbridge") if page in PAGES and "Qwen/" in line and "s3://" not in line
)


@pytest.mark.parametrize("line", LINES)
def test_commands_by_name_run_as_they_stand(line, hub, tmp_path):
    served = hub(None, token=TOKEN)
    served.person["orgs"] = [{"name": "acme", "roleInOrg": "write"}]
    shutil.copytree(CASE, served.root / "Qwen/Qwen2-72B-Instruct-GPTQ-Int4")
    env = {**os.environ, "HF_ENDPOINT": served.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    answered = done.returncode == 1 and words[3] == "check"  # no, of a model that is small
    assert done.returncode == 0 or answered, done.stderr
