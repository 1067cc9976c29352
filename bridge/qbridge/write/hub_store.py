"""A repository of the Hugging Face Hub as the store of an output: files are sent one by one, and seen by one commit.

Tokens and the endpoint are those of huggingface_hub, which sends the files (Git LFS, or Xet where hf_xet is there).
Source: huggingface_hub 2.4.0, hf_api.py (`whoami`, `create_repo`, `preupload_lfs_files`, `create_commit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from qbridge.findings.finding import QBridgeError, error
from qbridge.findings.way import Way
from qbridge.plan.shared_plan import PLAN
from qbridge.source.foreign import CONFIG
from qbridge.source.hub import Repository, library
from qbridge.source.web import LOG
from qbridge.write.local_spool import spool_folder, spool_room
from qbridge.write.stores import HIDDEN, Store

_SMALL = (
    4 << 20
)  # bytes of a file that is held in memory until the commit: the Hub may take it into the commit itself
_BESIDE = frozenset({".gitattributes", "README.md", "LICENSE"})  # what a repository has that was made on the web
_MAY_WRITE = frozenset({"admin", "write", "contributor"})  # roles in an organisation
_TOKEN = "Name a token that may write there: hf auth login, or HF_TOKEN."  # noqa: S105  no password


class HubStore(Store):
    """A branch of a model repository, or a pull request to it.

    What is hidden (`HIDDEN`, plan.json) is held in memory: nothing but the output is ever sent.
    """

    def __init__(self, url: str, repository: Repository, public: bool, request: bool, overwrite: bool) -> None:
        """`public` is what a repository becomes that is not there; `request` asks for a pull request."""
        self._url, self._name, self._branch = url, repository.name, repository.revision
        self._public, self._request, self._overwrite = public, request, overwrite
        hub = library()
        self._hub, self._api = hub, hub.HfApi(endpoint=hub.constants.ENDPOINT)
        self._hidden: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._operations: list[Any] = []
        self._there: set[str] = set()
        self._parent: str | None = None

    @property
    def url(self) -> str:
        """As it was given."""
        return self._url

    def check_writable(self, restricted: str) -> None:
        """Ask who the token is of and what it may, then have the repository, private unless it is to be public.

        QBridgeError: QB068 where something of it is not allowed, QB031 where a checkpoint is there already.
        """
        token = self._hub.get_token()
        if not token:
            raise error("QB068", self._url, ("there is no token",), fix=_TOKEN)
        if restricted and self._public:
            fact = f"the source is {restricted}, and --public would show it to everybody"
            raise error("QB068", self._url, (fact,), fix="Leave --public out: the repository is private then.")
        with self._asked():
            person = self._api.whoami(token)
        if not self._request:  # who may read may ask for a pull request
            _check_rights(person, self._name, self._url)
        with self._asked():
            self._have_repository(restricted)

    def _have_repository(self, restricted: str) -> None:
        """Make the repository and the branch where they are not there, and see what they hold."""
        try:
            info = self._api.repo_info(self._name)
        except self._hub.errors.RepositoryNotFoundError:
            self._api.create_repo(self._name, private=not self._public)
            LOG.info("made %s, %s", self._name, "public" if self._public else "private")
        else:
            if restricted and not info.private:
                fact = f"the source is {restricted}, and {self._name} is public"
                raise error("QB068", self._url, (fact,), fix="Name a repository that is private, or is not there.")
        if self._branch != "main":
            self._api.create_branch(self._name, branch=self._branch, exist_ok=True)
        info = self._api.repo_info(self._name, revision=self._branch)
        self._parent, self._there = info.sha, {each.rfilename for each in info.siblings or ()}
        if (others := sorted(self._there - _BESIDE)) and not self._overwrite:
            fact = f"it holds {CONFIG if CONFIG in others else others[0]}"
            raise error("QB031", self._url, (fact,), (Way("--overwrite"),), "Choose another repository or branch.")

    def names(self) -> Sequence[str]:
        """What was put and taken so far."""
        return sorted({*self._hidden, *self._sizes})

    def size(self, name: str) -> int | None:
        """Of what was put and taken so far."""
        return len(self._hidden[name]) if name in self._hidden else self._sizes.get(name)

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """Of what is hidden."""
        data = self._hidden.get(name)
        return data if data is None else data[:most]

    def create(self, name: str, data: bytes) -> bool:
        """As `Store.create`."""
        if self.size(name) is not None:
            return False
        self.put(name, data)
        return True

    def put(self, name: str, data: bytes) -> None:
        """Hold it until the commit."""
        if name == PLAN or name.startswith(HIDDEN):
            self._hidden[name] = data
        else:
            self._add(name, data, len(data))

    def take(self, path: Path, name: str) -> None:
        """Send it; it is part of nothing until the commit."""
        size = path.stat().st_size
        self._add(name, path.read_bytes() if size <= _SMALL else str(path), size)
        path.unlink()

    def _add(self, name: str, content: bytes | str, size: int) -> None:
        operation = self._hub.CommitOperationAdd(name, content)
        with self._asked():
            self._api.preupload_lfs_files(
                self._name, [operation], revision=self._branch, create_pr=self._request, free_memory=True
            )
        if operation.path_or_fileobj == content and isinstance(content, str):
            fact = f"the Hub would take {name} into the commit itself, {size} bytes"
            raise error("QB068", self._url, (fact,), fix="Track large files with Git LFS (.gitattributes).")
        self._operations.append(operation)
        self._sizes[name] = size

    def remove(self, names: Iterable[str]) -> None:
        """Of what is hidden: nothing else is ever removed."""
        for name in names:
            self._hidden.pop(name, None)

    @property
    def shows_parts(self) -> bool:
        """Nothing before the commit."""
        return False

    def working(self, name: str) -> AbstractContextManager[Path]:
        """A temporary folder."""
        return spool_folder(name)

    def room(self, largest: int) -> int:
        """As many as fit in the temporary folder."""
        return spool_room(largest)

    def commit(self, whole: bool) -> None:
        """One commit of everything, in which the files of an older output go; nothing before all is there."""
        if not whole:
            return
        old = self._there - self._sizes.keys() - _BESIDE if self._overwrite else set()
        removed = [self._hub.CommitOperationDelete(name) for name in sorted(old)]
        with self._asked():
            info = self._api.create_commit(
                self._name,
                [*self._operations, *removed],
                commit_message="Converted by qbridge",
                revision=self._branch,
                create_pr=self._request,
                parent_commit=self._parent,
            )
        LOG.info("committed: %s", info.pr_url or info.commit_url)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """QBridgeError (QB068) for what the Hub refuses, (QB404) where it does not answer; no text of a request."""
        self._hub.utils.disable_progress_bars()
        try:
            yield
        except QBridgeError:
            raise
        except self._hub.errors.HfHubHTTPError as fault:
            status = getattr(getattr(fault, "response", None), "status_code", 0)
            if status >= 500 or status in (0, 408, 429):
                raise error("QB404", self._url, (f"HTTP {status}",)) from None
            raise error("QB068", self._url, (_REFUSALS.get(status, f"HTTP {status}"),), fix=_TOKEN) from None
        except (ValueError, RuntimeError, *self._hub.errors.HfHubHTTPError.__bases__) as fault:
            raise error("QB404", self._url, (type(fault).__name__,)) from None


_REFUSALS = {
    401: "the Hub does not know the token",
    402: "the Hub asks for a payment",
    403: "the token may not do that",
    404: "there is no such repository, or the token may not see it",
    409: "something of that name is there already",
    412: "somebody else has committed meanwhile",
}


def _check_rights(person: dict[str, Any], name: str, url: str) -> None:
    """QBridgeError (QB068) where a token may not write a repository; what it does not say is left to the Hub."""
    token, owner = person.get("auth", {}).get("accessToken", {}), name.partition("/")[0]
    if token.get("role") == "read":
        raise error("QB068", url, ("the token may read only",), fix=_TOKEN)
    if token.get("role") == "fineGrained" and not _may_write(token.get("fineGrained", {}), owner, name):
        raise error("QB068", url, (f"the token has no right to write to {name}",), fix=_TOKEN)
    roles = {each.get("name"): each.get("roleInOrg") for each in person.get("orgs", ())}
    if owner != person.get("name") and owner not in roles:
        raise error("QB068", url, (f"{owner} is neither the owner of the token nor an organisation of theirs",))
    if owner in roles and roles[owner] not in (None, *_MAY_WRITE):
        raise error("QB068", url, (f"the owner of the token may not write in {owner} ({roles[owner]})",))


def _may_write(rights: dict[str, Any], owner: str, name: str) -> bool:
    """Whether a fine-grained token has the right to write to a repository or to all of its owner."""
    for scope in rights.get("scoped", ()):
        entity = scope.get("entity", {}).get("name")
        if entity in (owner, name) and "repo.write" in scope.get("permissions", ()):
            return True
    return False
