"""What Dask carries to a worker and back: bytes, which say nothing to it.

Dask fetches many results in one message, and one that cannot be read would spoil them all. And its
scheduler would import every function that it hands on; so it has to have this module only.
"""

from __future__ import annotations

import pickle


def call_pickled(call: bytes) -> bytes:
    """What a function returns, pickled; called by a worker.

    Parameters
    ----------
    call
        The function and its arguments, pickled.

    Raises
    ------
    Exception
        As the function; what pickle raises for what cannot be read or sent.
    """
    function, args = pickle.loads(call)
    return pickle.dumps(function(*args))
