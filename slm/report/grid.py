"""The samples that a report shows: every prompt at every temperature and top-k."""

from dataclasses import dataclass

from slm.config import ReportConfig
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.records import Progress, silent
from slm.tokens.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class GridSample:
    """A sample and where it stands in the grid."""

    prompt: str
    completion: str
    temperature: float
    top_k: int
    seed: int
    tokens: int
    ended: bool

    @property
    def text(self) -> str:
        return self.prompt + self.completion


def write_samples(
    model: GPT, tokenizer: Tokenizer, settings: ReportConfig, progress: Progress = silent
) -> list[GridSample]:
    """Every prompt at every temperature and top-k, each with a seed of its own."""
    decoder = Decoder(model)
    cells = [(t, k) for t in settings.temperatures for k in settings.top_ks]
    samples = []
    for number, (temperature, top_k) in enumerate(cells):
        progress("sampling", number, len(cells))
        first = settings.seed + number * len(settings.prompts)
        seeds = range(first, first + len(settings.prompts))
        written = generate(
            decoder,
            tokenizer,
            settings.prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seeds,
        )
        samples += [
            GridSample(s.prompt, s.completion, temperature, top_k, seed, s.tokens, s.ended)
            for s, seed in zip(written, seeds, strict=True)
        ]
    return samples
