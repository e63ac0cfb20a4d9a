"""Kinds of networks that map patches to flows: what is asked of one, and which there are.

A kind knows its files by the names of their tensors, and says everything that planning and engines
must know of a network before they have one: what its input planes mean, the patches that it takes,
what it costs. This module, and what it calls in a kind but `build`, does without torch, whose
import takes a second.

Other packages bring kinds of their own by an entry point of the group `densebatch.flow_models`,
whose object has the attributes and methods of `FlowModel`:

.. code-block:: toml

    [project.entry-points."densebatch.flow_models"]
    my-kind = "my_package.kind:MyKind"
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from densebatch.base.errors import InputError
from densebatch.models.kinds import CellposeSam, Cpnet, name_stranger

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

GROUP = "densebatch.flow_models"


@runtime_checkable
class FlowModel(Protocol):
    """A kind of network that maps patches to flows.

    Sizes of a network are a flat tuple of integers, the first of which is the number of its input
    planes; only the kind reads the others. They are part of a run's plan.

    Attributes
    ----------
    name : of the kind, lower case; an entry point's own name
    title : for messages, such as `Cellpose 1-3 network`
    inputs : what each input plane shows: `membrane`, `nuclei`, or `empty` for zeros
    multiple : patch lengths are multiples of this
    stretches : whether a patch may be longer than the model's own, to fit a slide
    libraries : of `engines.backend.BACKENDS`, that evaluate it
    max_weights : numbers that a file may hold
    """

    name: str
    title: str
    inputs: tuple[str, ...]
    multiple: int
    stretches: bool
    libraries: tuple[str, ...]
    max_weights: int

    def recognises(self, names: Collection[str]) -> bool:
        """Whether a file with tensors of these names is of this kind, damaged or not."""
        ...

    def infer_sizes(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Sizes of the network, from the shapes of its tensors.

        Raises
        ------
        ValueError
            With a reason, if they are not those of a network that this kind accepts.
        """
        ...

    def describe(self, sizes: tuple[int, ...], diameters: Mapping[str, float]) -> dict[str, Any]:
        """Fields of `models.model.Model` that such a network has if no card says otherwise.

        Parameters
        ----------
        sizes
            Of the network.
        diameters
            `diam_mean` and `diam_labels`, pixels, as far as the file has them.
        """
        ...

    def build(self, sizes: tuple[int, ...]) -> nn.Module:
        """A network without weights of use, whose state has the names and shapes of its files.

        It maps `(n, inputs, h, w)` float32, 0 to 1 from the lower to the upper percentile, to
        `(n, 3, h, w)`: flows along y and x at five times unit length, and the logit of the cell
        probability. In evaluation mode a patch's output depends on that patch alone.
        """
        ...

    def count_weights(self, sizes: tuple[int, ...]) -> int:
        """Numbers that a process holds for the network."""
        ...

    def patch_bytes(self, sizes: tuple[int, ...], height: int, width: int) -> int:
        """Of what is alive at once while a patch is evaluated in float32."""
        ...

    def patch_flop(self, sizes: tuple[int, ...], height: int, width: int) -> int | None:
        """Floating-point operations of a patch, if nearly all are matrix products; else None.

        What matrix products take on a machine is soon found out, so `plan` can tell the time.
        """
        ...


BUILT_IN: tuple[FlowModel, ...] = (Cpnet(), CellposeSam())


@lru_cache(maxsize=1)
def _list_plugins() -> dict[str, tuple[FlowModel, str, str]]:
    """Kinds that other packages bring, by name, each with its package's name and version."""
    found: dict[str, tuple[FlowModel, str, str]] = {}
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else entry.module
        try:
            loaded = entry.load()
            kind = loaded() if isinstance(loaded, type) else loaded
        except (Exception, SystemExit) as error:
            # Whatever a package does at import, it must not be taken for a fault of the model.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"flow model {entry.name!r} of the package {package}: cannot be loaded "
                f"({type(error).__name__}: {reason[:200]}); update or remove the package"
            ) from error
        is_kind = isinstance(kind, FlowModel) and "membrane" in kind.inputs
        if not is_kind or kind.name != entry.name:
            raise InputError(
                f"flow model {entry.name!r} of the package {package}: is no kind of that name as "
                "densebatch.models.flow_models.FlowModel says; update or remove the package"
            )
        version = entry.dist.version if entry.dist is not None else ""
        found[kind.name] = (kind, package, version)
    return found


def get_kind(name: str, package: str | None = None) -> FlowModel:
    """The kind of that name.

    Parameters
    ----------
    name
        Of the kind.
    package
        That is said to bring it, for the message.

    Raises
    ------
    InputError
        If no installed package has it.
    """
    for kind in BUILT_IN:
        if kind.name == name:
            return kind
    plugins = _list_plugins()
    if name not in plugins:
        known = ", ".join([kind.name for kind in BUILT_IN] + sorted(plugins))
        bringer = f"package {package}" if package else "package that brings it, which has"
        raise InputError(
            f"flow model {name!r}: is not installed here ({known} are); install the {bringer}"
            + ("" if package else f" an entry point of {GROUP}")
        )
    return plugins[name][0]


def find_kind(names: Collection[str]) -> FlowModel:
    """The kind whose files have tensors of these names.

    Raises
    ------
    ValueError
        With a reason, if none has.
    """
    for kind in BUILT_IN:
        if kind.recognises(names):
            return kind
    for kind, _, _ in _list_plugins().values():
        if kind.recognises(names):
            return kind
    stranger = name_stranger(names)
    accepted = " and ".join(
        kind.title for kind in (*BUILT_IN, *(k for k, _, _ in _list_plugins().values()))
    )
    raise ValueError(
        f"{stranger}; accepted are {accepted}, and what packages with an entry point of {GROUP} "
        "bring"
    )


def list_packages(name: str) -> dict[str, str]:
    """Name and version of the package that brings a kind; none for densebatch's own."""
    if any(kind.name == name for kind in BUILT_IN):
        return {}
    get_kind(name)
    _, package, version = _list_plugins()[name]
    return {package: version}
