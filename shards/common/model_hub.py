"""Models given by a directory or by a name on the Hugging Face hub, which may be unreachable."""

import functools
import os
import re
import ssl
import threading
import urllib.error
import urllib.request

PATIENCE = 4.0  # timeout in seconds of the hub; its client would try each of many files for a minute
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME


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


def unreachable(name) -> str:
    """Suffix of the error message for a missing model if the hub was not reachable; otherwise empty."""
    return "" if os.path.isdir(name) or not only_local(name) else "; the hub does not answer, its cache was searched"
