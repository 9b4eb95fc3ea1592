"""Attribution: how much each head, each input token and each attended token contributed to chosen logits, by one backward pass.

Whatever the rule, relevance is activation times altered gradient (see `headwise.attention.rules`). No attention matrix is stored: the kernel runs as
it is, with gradients altered outside of it; where that does not do, the backward pass is written out for blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headwise.attention.call import Call, KeyProvider, Pass, Whole
from headwise.attention.plan import Plan, attached
from headwise.attention.rules import DEFAULT, RULES, Rule, altered, rule_of
from headwise.attention.steer import Steering
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten
from headwise.maths.altered import scaled_gradient
from headwise.maths.relevance import POSITIVE, SourceSums, source_relevance
from headwise.maths.tempered import Inputs, tempered_attention

ROWS = ("all", "last")
SOURCES = ("weights",)

__all__ = ["DEFAULT", "POSITIVE", "ROWS", "RULES", "SOURCES", "Attribution", "attribute"]


class Attribution:
    """Step: alters the gradients of attention, and holds what `explain` found. `attribute` makes it.

    Args:
        plan: Of the model.
        rule: Of `RULES`.
        sources: See `attribute`.
        rows: See `attribute`.
        positive: See `attribute`.
        columns: See `attribute`.
    """

    def __init__(
        self, plan: Plan, rule: Rule, sources: str | None, rows: str | Tensor, positive: str, columns: Tensor | None
    ) -> None:
        self.rule, self._plan = rule, plan
        self._sources, self._rows, self._positive, self._columns = sources, rows, positive, columns
        self._collects = sources is not None and not (
            isinstance(rows, str) and rows == "last"
        )  # on the way back: the weights are made there anyway
        self._inputs: Tensor | None = None  # embeddings of the latest pass, the leaf of its graph
        self._mask: Tensor | None = None
        self._heads: dict[int, Tensor] = {}
        self._signed: dict[int, Tensor] = {}
        self._by_source: dict[int, Tensor] = {}
        self._collecting: dict[int, SourceSums] = {}
        self._tokens: Tensor | None = None
        self._spent = False

    # ---- the pass

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: it must be one that can be explained.

        Raises:
            HeadwiseError: No gradients, a cache with a past, training mode, a mask of the caller's own.
        """
        hf: Any = self._plan.model.hf
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            raise HeadwiseError("attribution needs gradients; run it outside of torch.no_grad() and torch.inference_mode()")
        if hf.training:
            raise HeadwiseError("attribution needs a model in evaluation mode; call model.eval()")
        if now.before:
            raise HeadwiseError(
                f"attribution needs one pass over the whole text, but {now.before} tokens stand in a cache already"
            )
        if now.mask is not None and (not isinstance(now.mask, Tensor) or now.mask.ndim != 2):
            raise HeadwiseError("attribution takes an attention_mask [batch, tokens] of zeros and ones, or none")
        if any(step is not self for step in self._plan.attending):
            raise HeadwiseError(
                "attribution cannot be combined with another step that attends in its own way; leave that block first"
            )
        written = self._sources is not None or self._writes_out(self._plan.model.attention_cap, self._plan.model.family.sinks)
        if written and any(isinstance(step, Steering) for step in self._plan.outputs):
            what = f"rule {self.rule.name!r}" if self._sources is None else "relevance per source token"
            raise HeadwiseError(
                f"{what} cannot be combined with steer on this model, which attends once more in its own way; use rule 'gradient' without sources"
            )
        self.forget()
        self._mask = None if now.mask is None else now.mask.bool()

    def embedded(self, embeddings: Tensor) -> Tensor:
        """The embeddings of the pass, cut off from what made them: the leaf down to which gradients go.

        Raises:
            HeadwiseError: Rows or columns that are asked for are not those of this pass.
        """
        if self._sources is not None:
            _check_fits(self._rows, self._columns, *embeddings.shape[:2])
        self._inputs = embeddings.detach().requires_grad_(True)
        return self._inputs

    def edit_inputs(self, call: Call) -> tuple[Tensor, KeyProvider]:
        """Alter the gradients of query, key and value: each takes part in one or two products of two activations.

        Raises:
            HeadwiseError: A part of the model is called, or a pass over a compressed cache or a cache with a past.
        """
        if call.plan.before is None:
            raise HeadwiseError("attribution needs a pass of the whole model, not of a part of it")
        whole = call.whole
        if len(whole.keys) > 1 or whole.length != call.query.shape[2]:
            raise HeadwiseError("attribution needs one pass over the whole text, without a cache that holds a part of it")
        once = self.rule.product
        twice = 0.0 if self.rule.weights_constant else once * once
        key, value = scaled_gradient(whole.keys[0], twice), scaled_gradient(whole.values[0], once)
        return scaled_gradient(call.query, twice), Whole((key,), (value,), whole.mask)

    def attend(self, call: Call) -> Tensor | None:
        """Attend with a backward pass of our own where the kernel's is not the rule's, or would store an attention matrix."""
        given = _inputs_of(call)
        sums = self._sums(given) if self._collects else None
        if sums is not None:
            self._collecting[call.layer] = sums
        elif not self._writes_out(call.softcap, call.sinks is not None):
            return None
        return tempered_attention(given, self.rule.temperature, self.rule.activation == "identity", sums)

    def look(self, call: Call) -> None:
        """Hang the sums onto the gradient at the output of the heads, with all edits of other steps."""
        output = call.output
        if not output.requires_grad:
            return
        kept, layer = (
            output.detach(),
            call.layer,
        )  # a hook that held the call would hold its own output: a circle that no collector sees
        given = _inputs_of(call) if self._sources and not self._collects else None

        def hook(gradient: Tensor) -> None:
            wide = torch.promote_types(kept.dtype, torch.float32)
            product = kept.to(wide) * gradient.to(wide)
            self._signed[layer] = product.sum(dim=(1, 3))
            self._heads[layer] = product.clamp_(min=0).sum(dim=(1, 3))
            if given is not None:
                self._by_source[layer] = self._of_last_rows(given, gradient)

        output.register_hook(hook)  # type: ignore[no-untyped-call]

    def _writes_out(self, softcap: float | None, sinks: object) -> bool:
        """Whether the backward pass of attention is written out: flash kernels have one temperature, no cap and no sinks.

        Without gradients of the weights it is also the faster one.
        """
        return self.rule.temperature != 1 or self.rule.weights_constant or softcap is not None or bool(sinks)

    def _sums(self, given: Inputs) -> SourceSums:
        """What collects the relevance of weights on the way back."""
        rows = self._rows.to(given.query.device) if isinstance(self._rows, Tensor) else None
        return SourceSums(given, rows, self._chosen_columns(given), self._positive)

    def _of_last_rows(self, given: Inputs, gradient: Tensor) -> Tensor:
        """Relevance of the weights of each row's last real token, for which one row of weights is made again."""
        places = torch.arange(gradient.shape[1], device=gradient.device).expand(len(gradient), -1)
        real = torch.ones_like(places, dtype=torch.bool) if self._mask is None else self._mask.to(gradient.device)
        rows = places == (places * real).amax(dim=1, keepdim=True)
        return source_relevance(given, gradient, rows=rows, columns=self._chosen_columns(given), positive=self._positive)

    def _wanted(self, length: int, device: torch.device) -> Tensor:
        """[B or 1, S] bool: source tokens that are asked for."""
        columns: Any = self._columns
        columns = columns.to(device)
        if columns.dtype == torch.bool:
            return columns if columns.ndim == 2 else columns[None]  # type: ignore[no-any-return]
        chosen = torch.zeros(length, dtype=torch.bool, device=device)
        chosen[columns] = True
        return chosen[None]

    def _chosen_columns(self, given: Inputs) -> Tensor | None:
        """Source tokens that any row of the batch is asked for, in order."""
        if self._columns is None:
            return None
        return self._wanted(given.key.shape[2], given.query.device).any(dim=0).nonzero().flatten()

    # ---- what it found

    def explain(self, value: Tensor, again: bool = False) -> None:
        """Go back from a value to heads and embeddings, in one backward pass.

        Args:
            value: A scalar, or one per row of the batch (they are summed; rows do not meet, so each gets its own). Usually a logit, or the sum of
                the logits of a whole answer.
            again: Keep the graph, so that another value of the same pass can be explained.

        Raises:
            HeadwiseError: No pass has run, it is explained already, or the value does not come from it.
        """
        if self._inputs is None:
            raise HeadwiseError("nothing to explain: run the model once inside the `with attribute(...)` block")
        if self._spent:
            raise HeadwiseError(
                "this pass is explained already; run the model again, or call explain(value, again=True) before the last time"
            )
        if not isinstance(value, Tensor) or value.ndim > 1 or not value.numel():
            raise HeadwiseError(f"explain takes a scalar tensor, or one value per row of the batch; got {shorten(repr(value))}")
        self._heads, self._signed, self._by_source = {}, {}, {}
        for sums in self._collecting.values():
            sums.clear()
        found = None
        if value.requires_grad:
            with torch.inference_mode(False), torch.enable_grad():  # only the pass has to be run with gradients
                (found,) = torch.autograd.grad(value.sum(), [self._inputs], retain_graph=again, allow_unused=True)
        if found is None:
            raise HeadwiseError("the value to explain does not depend on the latest pass in this block")
        wide = torch.promote_types(found.dtype, torch.float32)
        self._tokens = (found.to(wide) * self._inputs.detach().to(wide)).sum(dim=-1)
        self._spent = not again

    @property
    def heads(self) -> Tensor:
        """[B, L, H]: sum of the positive parts of z * g over rows and channels; NaN in layers without attention heads."""
        return self._stack(self._heads)

    @property
    def signed(self) -> Tensor:
        """[B, L, H]: sum of z * g over rows and channels."""
        return self._stack(self._signed)

    @property
    def tokens(self) -> Tensor:
        """[B, S]: relevance at the input embeddings, summed over their width."""
        if self._tokens is None:
            raise HeadwiseError("nothing was explained: call explain(value) first")
        return self._tokens

    @property
    def sources(self) -> Tensor:
        """[B, L, H, S]: relevance of attention weights per source token; 0 where `columns` did not ask for one."""
        if self._sources is None:
            raise HeadwiseError("relevance per source token was not asked for; use attribute(..., sources='weights')")
        self._by_source |= {layer: sums.result() for layer, sums in self._collecting.items()}
        # The gradient at a weight is taken in front of the halving of weights * values.
        found = self._stack(self._by_source, self.tokens.shape[1]) * self.rule.product
        return found if self._columns is None else found * self._wanted(found.shape[-1], found.device)[:, None, None]

    def _stack(self, found: dict[int, Tensor], *more: int) -> Tensor:
        """Layers in order, on the device of the embeddings; what no gradient reached is 0."""
        tokens, (layers, heads) = self.tokens, self._plan.model.heads.shape
        like = tokens.new_zeros(len(tokens), heads, *more)
        empty = {
            layer: like if layer in self._plan.model.modules else torch.full_like(like, torch.nan) for layer in range(layers)
        }
        return torch.stack([found.get(layer, empty[layer]).to(like.device, like.dtype) for layer in range(layers)], dim=1)

    def forget(self) -> None:
        """Let go of the latest pass and of what was found."""
        self._inputs = self._mask = self._tokens = None
        self._heads, self._signed, self._by_source, self._collecting = {}, {}, {}, {}
        self._spent = False

    def release(self) -> None:
        """Let go of the graph; what was found stays readable."""
        self._inputs, self._spent = None, True


def _inputs_of(call: Call) -> Inputs:
    """What a call reads, for formulas."""
    return Inputs(call.query, call.keys[0], call.values[0], call.visible, call.sinks, call.scaling, call.softcap)


@contextmanager
def attribute(
    model: Any,
    rule: str = DEFAULT,
    *,
    sources: str | None = None,
    rows: str | Tensor = "all",
    positive: str = "pair",
    columns: Tensor | None = None,
) -> Iterator[Attribution]:
    """Inside the block run the model once, then ask what its heads and its input contributed to some logits.

    ```python
    with headwise.attribute(model) as seen:
        out = model.hf(input_ids=ids, logits_to_keep=1)
        seen.explain(out.logits[:, -1, target])
    seen.heads, seen.tokens
    ```

    Parameters are frozen in the block, passes keep no cache unless told to, and logits come in front of a final cap (Gemma 2), where the rules begin.
    After the block the model is bit for bit what it was. May be nested with `observe` and `ablate`; ablated heads have no relevance in mode `zero`.

    Args:
        model: A `Model`, or a transformers model.
        rule: How gradients are altered:
            `gradient`: not at all (input * gradient).
            `gim`: Gradient Interaction Modifications (Edin et al. 2025, arXiv:2505.17630): divisors of norms are constants, products of two
            activations share their gradient (values 1/2, query and key 1/4, gate and up 1/2, as in the authors' code), the softmax of attention
            hands gradients back at temperature 2.
            Experts and routers, which the paper does not treat, are products too.
            `cp_lrp`, `attnlrp`: layer-wise relevance propagation with constant, or with halved, attention (Achtibat et al. 2024, arXiv:2402.05602).
            May be covered by patents, see `headwise.attention.rules`.
        sources: `weights`: also the relevance of attention weights per source token.
        rows: Query rows that are summed for `sources`: `all`; `last`: the last real token of each row; or [B, T] bool.
        positive: For `sources`, what counts: positive parts of each `pair` of query row and source, of each source `token`, or `none`: signed.
        columns: Source tokens that are wanted, [S] or [B, S] bool, or their positions [J]; the others are 0. None: all.

    Yields:
        What `explain` fills: `heads`, `signed`, `tokens`, `sources`.

    Raises:
        HeadwiseError: Unknown options, a block inside another one of the same model; and in a pass that cannot be explained.
        UnsupportedModelError: The model has a part that the rule says nothing about.
    """
    chosen = rule_of(rule)
    _check(sources, rows, positive, columns)
    with attached(model) as plan, ExitStack() as undo:
        if any(isinstance(step, Attribution) for step in plan.looking):
            raise HeadwiseError("one attribute block of this model is open already; leave it first")
        seen = Attribution(plan, chosen, sources, rows, positive, columns)
        undo.callback(seen.release)
        undo.enter_context(_prepared(plan, seen))
        undo.enter_context(altered(plan.model, chosen))
        undo.enter_context(plan.running(seen))
        yield seen


def _check(sources: str | None, rows: object, positive: str, columns: object) -> None:
    if sources is not None and sources not in SOURCES:
        raise HeadwiseError(f"unknown sources {sources!r}; use {', '.join(SOURCES)}, or None for no relevance per source token")
    if not (rows in ROWS if isinstance(rows, str) else isinstance(rows, Tensor) and rows.ndim == 2 and rows.dtype == torch.bool):
        raise HeadwiseError(f"rows must be {', '.join(ROWS)}, or a bool tensor [batch, tokens]; got {shorten(repr(rows))}")
    if positive not in POSITIVE:
        raise HeadwiseError(f"unknown positive part {positive!r}; use {', '.join(POSITIVE)}")
    if columns is not None and not (isinstance(columns, Tensor) and columns.dtype in (torch.bool, torch.int64)):
        raise HeadwiseError(f"columns must be a tensor of bool or of positions; got {shorten(repr(columns))}")


def _check_fits(rows: str | Tensor, columns: Tensor | None, batch: int, length: int) -> None:
    """Refuse rows and columns of another batch or text; torch would fail in the kernel, or broadcast."""
    tables = [(name, table) for name, table in (("rows", rows), ("columns", columns)) if isinstance(table, Tensor)]
    for name, table in tables:
        if table.dtype != torch.bool:
            fits = bool(((table >= -length) & (table < length)).all())
        else:
            fits = table.shape[-1:] == (length,) and tuple(table.shape[:-1]) in ((), (1,), (batch,))
        if not fits:
            raise HeadwiseError(f"{name} do not fit a pass of {batch} rows x {length} tokens; got {_told(table)}")


def _told(table: Tensor) -> str:
    return f"the shape {list(table.shape)}" if table.dtype == torch.bool else shorten(str(table.tolist()))


@contextmanager
def _prepared(plan: Plan, seen: Attribution) -> Iterator[None]:
    """Freeze parameters, take the final cap away, make the embeddings a leaf; undo all of it."""
    hf: Any = plan.model.hf
    trained = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    config, cap = hf.config.get_text_config(decoder=True), plan.model.family.logit_cap
    before = getattr(config, cap) if cap else None
    with ExitStack() as undo:
        undo.callback(hf.register_forward_pre_hook(_pass_hook(seen), with_kwargs=True).remove)
        table: nn.Module = hf.get_input_embeddings()
        undo.callback(table.register_forward_hook(lambda _, inputs, output: seen.embedded(output)).remove)
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            if cap:
                setattr(config, cap, None)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            if cap:
                setattr(config, cap, before)


def _pass_hook(seen: Attribution) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        options = dict(options)
        if options.get("use_cache") is None:
            options["use_cache"] = False  # it would hold copies of keys and values
        if options.get("inputs_embeds") is not None:
            options["inputs_embeds"] = seen.embedded(options["inputs_embeds"])
        return inputs, options

    return hook
