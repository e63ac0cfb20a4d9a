"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# Time must never decide a test: the first example of a kernel compiles it.
settings.register_profile("densebatch", deadline=None)
settings.load_profile("densebatch")
