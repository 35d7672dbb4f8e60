"""Models that are named: directories, and models of the Hugging Face hub, which may not be within reach."""

import functools
import os
import re
import ssl
import threading
import urllib.error
import urllib.request

PATIENCE = 4.0  # seconds in which the hub has to answer; its client tries each of many files for a minute
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME


def only_local(name) -> bool:
    """Whether a model has to be loaded from this machine: from its directory, or, since the hub does not answer, from
    the hub's cache. What loads models takes it as `local_files_only`."""
    from huggingface_hub import constants  # with transformers, which take seconds to import

    return os.path.isdir(name) or constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)


@functools.cache
def _answers(address: str) -> bool:
    """Whether anything answers at an address, through a proxy where the environment names one. Asked once."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError) as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # certificates are for the client to judge
                return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up takes as long as it likes
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()


def unreachable(name) -> str:
    """The part of a sentence on why a model that was not found was not looked for on the hub, empty where it was."""
    return "" if os.path.isdir(name) or not only_local(name) else "; the hub does not answer, its cache was searched"
