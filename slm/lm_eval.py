"""Runs, checkpoints and model versions as models of lm-eval (the extra lm-eval).

    python -m slm.lm_eval --model slm --model_args run=slm@champion --tasks arc_easy

takes every argument of the command `lm_eval`, which has no way to be told of a model outside of its
own package. From Python, importing this module is enough:

    import slm.lm_eval, lm_eval
    lm_eval.simple_evaluate("slm", {"run": "slm@champion"}, tasks=["arc_easy"])

Texts are scored as `slm benchmark` does, in float32, and sampled as `slm sample` does.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from slm.errors import UserError
from slm.extras import require
from slm.machine import prepare

require("lm_eval", "slm.lm_eval")

from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402

from slm.evaluation.benchmark.score import (  # noqa: E402
    Request,
    fitted,
    log_likelihoods,
    request_of,
)

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_NEW_TOKENS = 256  # where a task sets no other number, as lm-eval's own models
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")


@register_model("slm")
class SlmLM(TemplateLM):  # type: ignore[misc]
    """A model of slm.

    Args:
        run: what `slm.load_model` takes: a run, NAME@ALIAS, or the folder of a checkpoint.
        device: cpu, cuda or mps; None: what the run's `train.device` allows.
        batch_size, max_batch_size: are not needed: batches are made by the number of tokens.
    """

    def __init__(
        self,
        run: str,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        from slm.registry.opening import load_model

        self.loaded = load_model(str(run), device=device)
        self.model, self._tokens = self.loaded
        self.max_length = self.model.config.seq_len

    @property
    def eot_token_id(self) -> int:
        return self._tokens.eot

    @property
    def tokenizer_name(self) -> str:
        return self._tokens.sha256

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self._tokens.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one."""
        parts: list[Request] = []
        counts = []
        for _, context, continuation in requests:
            mine = fitted([*context, *continuation], len(context), self.max_length)
            parts += mine
            counts.append(len(mine))
        scored = log_likelihoods(self.model, parts)
        results, at = [], 0
        for count in counts:
            nats, greedy = scored.nats[at : at + count], scored.greedy[at : at + count]
            results.append((float(nats.sum()), bool(greedy.all())))
            at += count
        return results

    def loglikelihood(
        self, requests: "list[Instance]", disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        pairs = [request_of(self._tokens, *request.args) for request in requests]
        return self._loglikelihood_tokens([(None, ids[:n], ids[n:]) for ids, n in pairs])

    def loglikelihood_rolling(
        self, requests: "list[Instance]", disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts: windows of the context's length, end to end."""
        parts: list[Request] = []
        owners = []
        for number, request in enumerate(requests):
            ids = [self.eot_token_id, *self._tokens.encode(request.args[0])]
            for start, end in _windows(len(ids), self.max_length):
                first = max(start, end - 1 - self.max_length)
                parts.append(Request(tuple(ids[first:end]), start + 1 - first))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, nats in zip(owners, log_likelihoods(self.model, parts).nats, strict=True):
            totals[owner] += float(nats)
        return totals

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop text, greedy unless a task samples."""
        from slm.registry.sampling import sample

        texts = []
        for request in requests:
            context, given = request.args
            settings = _sampling(given)
            length = min(settings["max_new_tokens"], self.max_length - 1)
            ids = self._tokens.encode(context)[-(self.max_length - length) :]
            prompt = self._tokens.decode(ids) or "\n"
            [made] = sample(self.loaded, prompt, **{**settings, "max_new_tokens": length})
            texts.append(_before(made.completion, _stops(given)))
        return texts


def _windows(length: int, seq_len: int) -> Iterable[tuple[int, int]]:
    """Which ids, from `start` + 1 up to `end`, each window predicts: lm-eval's, of context 1.

    >>> list(_windows(8, 4))
    [(0, 5), (4, 8)]
    """
    for start in range(0, length - 1, seq_len):
        yield start, min(start + seq_len + 1, length)


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of `slm.sample` of lm-eval's; without `do_sample` it is greedy."""
    settings = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    if not given.get("do_sample", settings.get("temperature", 0) > 0):
        settings = {"temperature": 0.0}
    lengths = (given[name] for name in _LENGTHS if given.get(name))
    return {**settings, "max_new_tokens": int(next(lengths, MAX_NEW_TOKENS))}


def _stops(given: dict[str, Any]) -> list[str]:
    until = given.get("until") or []
    if not isinstance(until, str | list):
        raise UserError(f"until={until!r} is neither a text nor a list of texts")
    return [until] if isinstance(until, str) else until


def _before(text: str, stops: Iterable[str]) -> str:
    """The text up to the first of the stop texts."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text


def main() -> None:
    """The command `lm_eval`, which knows the model `slm` here."""
    from lm_eval.__main__ import cli_evaluate

    prepare()
    cli_evaluate()


if __name__ == "__main__":
    from slm.lm_eval import main as registered  # as this module's own name, once

    registered()
