"""Models given by a directory or by a name on the Hugging Face hub, which may be unreachable."""

import functools
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from shards.common.errors import UserError

PATIENCE = 4.0  # timeout in seconds of the hub; its client would try each of many files for a minute
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME
PREFIX = "hf:"  # of a model on the hub, where a path is expected
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{8,})(?:/|$)")  # in the hub's cache
MODEL_FILES = ("*.json", "*.safetensors", "detector/*", "README.md")  # nothing else of a repository is downloaded


def only_local(name) -> bool:
    """The value of `local_files_only` for loading a model: true for directories, and if the hub does not answer."""
    from huggingface_hub import constants  # takes seconds to import

    return os.path.isdir(name) or constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)


@functools.cache
def _answers(address: str) -> bool:
    """Whether a server answers at a URL, through the proxy of the environment; the result is cached."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError) as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # the client has its own certificates
                return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # because the name resolution has no timeout
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()


def load_failure(error: Exception, name) -> str:
    """Why a library could not load a model: the first line of its error, and whether the hub was not reachable."""
    return _first_line(error).rstrip(".") + unreachable(name)


def unreachable(name) -> str:
    """Suffix of the error message for a missing model if the hub was not reachable; otherwise empty."""
    return "" if os.path.isdir(name) or not only_local(name) else "; the hub does not answer, its cache was searched"


def local_model(name) -> str:
    """The local folder of a model: a path as it is, or hf:OWNER/NAME[@REVISION] downloaded to the hub's cache.

    Raises:
        UserError: the hub does not have the model, or does not answer and neither does its cache.
    """
    name = str(name)
    if not name.startswith(PREFIX):
        return name
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not HUB_NAME.fullmatch(repository):
        raise UserError(f"{name}: should be {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=MODEL_FILES, local_files_only=only_local(repository)
        )
    except LocalEntryNotFoundError:
        raise UserError(f"{name}: not in the cache{unreachable(repository)}") from None
    except (HTTPError, ValueError, OSError) as error:  # HTTPError: of any connection, the base class of HfHubHTTPError
        raise UserError(f"{name}: cannot be downloaded ({_first_line(error)})") from None


def check_hub_name(name: str, where: str = "") -> None:
    """Raises UserError for a name that is not OWNER/NAME. where: prefix of the message."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{where}{name}: should be OWNER/NAME")


def pretrained_name(name, revision: str | None = None) -> str:
    """The value for local_model of what from_pretrained methods take: an existing path, or OWNER/NAME on the hub.

    Raises:
        UserError: a revision is given for a path, or twice.
    """
    name = str(name)
    on_hub = name.startswith(PREFIX) or (HUB_NAME.fullmatch(name) and not os.path.exists(name))
    if revision is not None and (not on_hub or "@" in name):
        raise UserError(f"revision {revision}: is of a model on the hub, given as OWNER/NAME; {name} is not")
    if not on_hub:
        return name
    return f"{PREFIX}{name.removeprefix(PREFIX)}" + (f"@{revision}" if revision else "")


def name_in_cache(path) -> str | None:
    """OWNER--NAME-COMMIT of a path in the hub's cache, with eight digits of the commit; None for other paths."""
    found = _SNAPSHOT.search(os.path.abspath(path))
    return f"{found[1]}-{found[2][:8]}" if found else None


def upload(folder: Path, repository: str, private: bool) -> str:
    """Uploads a folder to a repository of the hub, which is created if it does not exist; returns its address.

    Raises:
        UserError: the hub does not answer or refuses.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub does not answer"
        raise UserError(f"{repository}: cannot be uploaded, because {reason}")
    try:
        address = huggingface_hub.create_repo(repository, private=private, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(MODEL_FILES))
    except (HTTPError, ValueError, OSError) as error:
        lost = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
        advice = "the connection failed, try again" if lost else "log in with `hf auth login`"
        raise UserError(f"{repository}: cannot be uploaded ({_first_line(error)}); {advice}") from None
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
