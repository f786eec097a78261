"""Where a model's modules hold its sites: found by what its blocks take and give in one pass, and checked by it.

What attention and MLP add is found as the two outputs inside a block that make its residual stream add up: of the modules, of
the norms behind them (Gemma 2, OLMo 2), or of their last projections (BLOOM, whose modules add the residual themselves). Where
nothing adds up, because a block scales its sums (Granite) or normalises them (OPT 350M), these sites are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelake.ingest.norms import Inside, inside_of
from saelake.ingest.sites import Site
from saelake.ingest.sums import alike, sums_to
from saelake.warehouse.errors import UserError

ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
MLPS = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "moe")
PROBE_TOKENS = 5

Seen = Callable[[Tensor], Tensor | None]


class Place(NamedTuple):
    """A module's input or output."""

    module: nn.Module
    of: str
    """input | output"""

    @contextmanager
    def open(self, fn: Seen, n_rows: int | None = None) -> Iterator[None]:
        """While open, calls fn on the tensor (b, t, d) there; a returned tensor replaces it."""

        def seen(found: Tensor) -> Tensor | None:
            # OPT's MLP works on (b t, d).
            whole = found if n_rows is None or found.dim() == 3 else found.view(n_rows, -1, found.shape[-1])
            replacement = fn(whole)
            return None if replacement is None else replacement.reshape(found.shape)

        def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            replacement = seen(output if isinstance(output, Tensor) else output[0])
            if replacement is None:
                return None
            return replacement if isinstance(output, Tensor) else (replacement, *output[1:])

        def on_input(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                replacement = seen(args[0])
                return None if replacement is None else ((replacement, *args[1:]), kwargs)
            replacement = seen(kwargs["hidden_states"])
            return None if replacement is None else (args, kwargs | {"hidden_states": replacement})

        if self.of == "output":
            handle = self.module.register_forward_hook(on_output)
        else:
            handle = self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Sites:
    """Where a model's sites are, and why some are not."""

    blocks: nn.ModuleList
    places: dict[Site, Place]
    """Of every site that is a module's input or output."""
    widths: dict[Site, int]
    """Of the sites that are not as wide as the residual stream."""
    refusals: dict[Site, str] = field(default_factory=dict)
    n_given: list[int | None] = field(default_factory=list)
    """How many things each block gives, the residual stream first; None: the residual stream by itself."""
    insides: dict[Site, Inside] = field(default_factory=dict)
    """How what is inside the norm is read at each mlp_in_unit."""
    _mids: dict[int, list["_Mid"]] = field(default_factory=dict)
    """Layer -> what is open at its resid_mid."""

    def check(self, site: Site, *, write: bool = False) -> None:
        """Raises UserError where this model has no such site, or (`write`) where it can be read only."""
        if not 0 <= site.layer < len(self.blocks):
            raise UserError(f"layer {site.layer} does not exist: the model has {len(self.blocks)} layers, counted from 0")
        if site in self.refusals:
            raise UserError(f"{site} cannot be used in this model: {self.refusals[site]}")
        if write and site.kind == "mlp_in_unit":
            raise UserError(f"{site} can be read but not written: it is a norm's inner value")

    @contextmanager
    def open(self, site: Site, fn: Seen, n_rows: int | None = None) -> Iterator[None]:
        """While open, calls fn(x_btd) at the site; a returned tensor replaces it."""
        self.check(site)
        if site.kind == "resid_mid":
            with self._mid(site.layer, fn, n_rows):
                yield
            return
        if site.kind == "mlp_in_unit":
            inside = self.insides[site]
            with self.places[site].open(lambda x: _only_read(fn, inside.read(x)), n_rows):
                yield
            return
        with self.places[site].open(fn, n_rows):
            if site.kind in _SUMMED:
                for mid in self._mids.get(site.layer, ()):
                    mid.put_last()
            yield

    @contextmanager
    def _mid(self, layer: int, fn: Seen, n_rows: int | None) -> Iterator[None]:
        before, attention = (self.places[Site(layer, kind)] for kind in _SUMMED)
        mid, mids = _Mid(before, attention, fn, n_rows), self._mids.setdefault(layer, [])
        mids.append(mid)
        try:
            mid.put_last()
            yield
        finally:
            mids.remove(mid)
            mid.close()


_SUMMED = ("resid_pre", "attn_out")
"""Whose sum resid_mid is."""


class _Mid:
    """A hook at resid_mid, a sum that no module gives: what changes it is added to what the attention adds."""

    def __init__(self, before: Place, attention: Place, fn: Seen, n_rows: int | None) -> None:
        self._before, self._attention, self._fn, self._n_rows = before, attention, fn, n_rows
        self._hooks = ExitStack()
        self._resid_btd: Tensor | None = None

    def put_last(self) -> None:
        """Behind all that is hooked by now at what it sums: a pass comes to these first, whichever was opened first."""
        self.close()
        self._hooks.enter_context(self._before.open(self._keep, self._n_rows))
        self._hooks.enter_context(self._attention.open(self._change, self._n_rows))

    def close(self) -> None:
        self._hooks.close()

    def _keep(self, resid_btd: Tensor) -> None:
        self._resid_btd = resid_btd

    def _change(self, attn_btd: Tensor) -> Tensor | None:
        assert self._resid_btd is not None, "a block's attention has given something before the block took anything"
        mid_btd = self._resid_btd + attn_btd
        changed_btd = self._fn(mid_btd)
        return None if changed_btd is None else attn_btd + (changed_btd - mid_btd)


def _only_read(fn: Seen, x_btd: Tensor) -> None:
    assert fn(x_btd) is None, "the inside of a norm is read only"


@torch.no_grad()
def find_sites(blocks: nn.ModuleList, probe: Callable[[Tensor], object], device: torch.device, n_vocab: int) -> Sites:
    """The sites of a model, found and checked by one pass over a few tokens.

    Args:
        probe: runs the model on token ids (1, t).
    """
    traces = [_Trace() for _ in blocks]
    ids_bt = torch.arange(1, PROBE_TOKENS + 1, device=device)[None] % n_vocab
    with ExitStack() as hooks:
        for block, trace in zip(blocks, traces, strict=True):
            hooks.enter_context(trace.open(block))
        probe(ids_bt)
    sites = Sites(blocks, {}, {}, {})
    for layer, (block, trace) in enumerate(zip(blocks, traces, strict=True)):
        sites.places[Site(layer, "resid_pre")] = Place(block, "input")
        sites.places[Site(layer, "resid_post")] = Place(block, "output")
        sites.n_given.append(trace.n_given)
        _map_block(sites, layer, block, trace)
    return sites


class _Trace:
    """What the parts of one block took and gave in a pass."""

    def __init__(self) -> None:
        self.took: dict[nn.Module, Tensor] = {}
        self.gave: dict[nn.Module, Tensor] = {}
        self.n_given: int | None = None
        self._block: nn.Module | None = None

    @contextmanager
    def open(self, block: nn.Module) -> Iterator[None]:
        self._block = block
        parts = [block]
        for part in block.children():
            parts += [part, *part.children()]
        with ExitStack() as hooks:
            for part in parts:
                if not isinstance(part, nn.ModuleList):
                    hooks.callback(part.register_forward_pre_hook(self._take, with_kwargs=True).remove)
                    hooks.callback(part.register_forward_hook(self._give).remove)
            yield

    def _take(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        found = args[0] if args else kwargs.get("hidden_states")
        if isinstance(found, Tensor) and found.is_floating_point():
            self.took[module] = _rows(found)

    def _give(self, module: nn.Module, _args: Any, output: Any) -> None:
        found = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple | list) and output else None
        if module is self._block and not isinstance(output, Tensor):
            self.n_given = len(output)
        if isinstance(found, Tensor) and found.is_floating_point():
            self.gave[module] = _rows(found)


def _rows(found: Tensor) -> Tensor:
    """A copy (n, d): some models go on computing in place."""
    return found.detach().reshape(-1, found.shape[-1]).clone()


def _map_block(sites: Sites, layer: int, block: nn.Module, trace: _Trace) -> None:
    """Fills in the places of one block's inner sites, or why there are none."""
    attention, mlp_first, mlp_last = _child(block, ATTENTIONS), _child(block, MLPS), _child(block, MLPS)
    if mlp_first is None:
        mlp_first, mlp_last = _child(block, ("fc1",)), _child(block, ("fc2",))  # OPT has no module for its MLP
    refuse = {kind: f"a {type(block).__name__} has no {what} that is known" for kind, what in _NEEDED.items()}
    if attention is not None:
        projection = _child(attention, PROJECTIONS)
        if projection is not None and projection in trace.took:
            sites.places[Site(layer, "z")] = Place(projection, "input")
            sites.widths[Site(layer, "z")] = trace.took[projection].shape[-1]
            del refuse["z"]
    if mlp_first is not None and mlp_first in trace.took:
        sites.places[Site(layer, "mlp_in")] = Place(mlp_first, "input")
        del refuse["mlp_in"]
        norm = _giver(block, trace, mlp_first)
        if norm is None:
            refuse["mlp_in_unit"] = f"the MLP of a {type(block).__name__} reads no norm's output"
        elif inside := inside_of(norm, trace.took[norm], trace.gave[norm]):
            sites.insides[Site(layer, "mlp_in_unit")] = inside
            sites.places[Site(layer, "mlp_in_unit")] = Place(norm, inside.of)
            del refuse["mlp_in_unit"]
        else:
            refuse["mlp_in_unit"] = f"how a {type(norm).__name__} normalises is not known"
    if attention is not None and mlp_last is not None:
        added = _additions(block, trace, attention, mlp_last)
        if added is None:
            sum_fails = (
                f"resid_pre + attn_out + mlp_out is not resid_post in a {type(block).__name__}, whose block scales or "
                f"normalises its sums"
            )
            refuse |= dict.fromkeys(("attn_out", "resid_mid", "mlp_out"), sum_fails)
        else:
            for kind, part in zip(("attn_out", "mlp_out"), added, strict=True):
                sites.places[Site(layer, kind)] = Place(part, "output")
                del refuse[kind]
            mid = [trace.took[block], trace.gave[added[0]]]
            taken = (took for part, took in trace.took.items() if part not in (block, added[0]) and took.shape == mid[0].shape)
            if any(sums_to(mid, took) for took in taken):
                del refuse["resid_mid"]
            else:
                refuse["resid_mid"] = f"in a {type(block).__name__} attention and MLP read the same residual stream side by side"
    sites.refusals.update({Site(layer, kind): why for kind, why in refuse.items()})


_NEEDED = {
    "z": "projection of its heads",
    "attn_out": "attention",
    "resid_mid": "attention",
    "mlp_in_unit": "MLP",
    "mlp_in": "MLP",
    "mlp_out": "MLP",
}


def _child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((found for name in names if isinstance(found := getattr(module, name, None), nn.Module)), None)


def _giver(block: nn.Module, trace: _Trace, mlp: nn.Module) -> nn.Module | None:
    """The norm of a block whose output the MLP took: the last before it, as another may have given the like (where the attention
    adds nothing, the norm in front of it)."""
    norms = {part for name, part in block.named_children() if "norm" in name or "ln" in name}
    called = list(trace.gave)
    before = called[: called.index(mlp)] if mlp in trace.gave else called
    return next((part for part in reversed(before) if part in norms and alike(trace.gave[part], trace.took[mlp])), None)


def _additions(block: nn.Module, trace: _Trace, attention: nn.Module, mlp: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The two modules whose outputs a block adds to its residual stream; None where no two add up."""
    before, after = trace.took.get(block), trace.gave.get(block)
    if before is None or after is None:
        return None
    for of_attention in _outputs(block, trace, attention):
        for of_mlp in _outputs(block, trace, mlp):
            parts = trace.gave[of_attention], trace.gave[of_mlp]
            if all(part.shape == before.shape for part in parts) and sums_to([before, *parts], after):
                return of_attention, of_mlp
    return None


def _outputs(block: nn.Module, trace: _Trace, part: nn.Module) -> Iterator[nn.Module]:
    """Modules whose output may be what a part adds: the part, a norm behind it, or its last projection (BLOOM adds inside)."""
    if part not in trace.gave:
        return
    yield part
    for other in block.children():
        if other in trace.took and other in trace.gave and alike(trace.took[other], trace.gave[part]):
            yield other
    for inner in reversed(list(part.children())):
        if inner in trace.gave:
            yield inner
