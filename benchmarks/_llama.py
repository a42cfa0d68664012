"""llama.cpp as the other benchmarks use it, by its plain C functions.

It needs the package llama-cpp-python.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as library
import numpy as np
import numpy.typing as npt

NO_FLASH = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED

# llama.cpp's log; the callback has to live as long as the library.
_SILENT = library.llama_log_callback(lambda level, text, data: None)
library.llama_log_set(_SILENT, None)


class Llama:
    """A GGUF file in llama.cpp.

    Weights stay as they are in the file (`use_extra_bufts`): llama.cpp would repack those of eight
    bits for AMX, and with llama-cpp-python 0.3.36 as GCC 12 compiles it, on a Xeon with AMX, their
    first product of several rows ends the process by a segmentation fault. One row alone, float16
    and float32 do not. In the compiled library the stores of the tile shapes before `ldtilecfg` are
    missing; llama.cpp's pull request 26954 reports that as the cause on other machines. Whether it
    is the only one was not examined.

    Args:
        context: tokens that each sequence has room for; 0: only the vocabulary is read.
        sequences: how many texts `generate` makes in one batch at most.
        exact: keys and values in float32. llama.cpp's own choice is float16, and its flash
            attention rounds those of a float32 cache to float16 as well.
    """

    def __init__(
        self,
        path: Path,
        context: int = 0,
        sequences: int = 1,
        threads: int = 1,
        exact: bool = True,
    ) -> None:
        params = library.llama_model_default_params()
        params.vocab_only = not context
        params.use_extra_bufts = False
        self._model = library.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._vocabulary = library.llama_model_get_vocab(self._model)
        self.n_vocab: int = library.llama_vocab_n_tokens(self._vocabulary)
        self._context = None
        if context:
            options = library.llama_context_default_params()
            options.n_seq_max = sequences
            options.n_ctx = context * sequences
            options.n_threads = options.n_threads_batch = threads
            if exact:
                options.type_k = options.type_v = library.GGML_TYPE_F32
                options.flash_attn_type = NO_FLASH
            self._context = library.llama_init_from_model(self._model, options)
            self._rows = library.llama_batch_init(context * sequences, 0, 1)

    def close(self) -> None:
        """Free all memory; the object cannot be used any more."""
        if self._context:
            library.llama_batch_free(self._rows)
            library.llama_free(self._context)
        library.llama_model_free(self._model)

    def tokenize(self, text: str, begin: bool = False) -> list[int]:
        """The tokens of a text; `begin`: after what the file says opens each text."""
        data = text.encode()
        size = len(data) + 1  # no token has fewer bytes than one
        ids = (library.llama_token * size)()
        count = library.llama_tokenize(
            self._vocabulary, data, len(data), ids, size, begin, False
        )  # negative: they do not fit
        assert count >= 0
        return list(ids[:count])

    def text(self, ids: Sequence[int]) -> str:
        """What tokens spell; one that is no text, such as end-of-text, spells nothing."""
        data = b""
        buffer = bytes(1024)
        for token in ids:
            size = library.llama_token_to_piece(
                self._vocabulary, token, buffer, len(buffer), 0, False
            )
            assert size >= 0
            data += buffer[:size]
        return data.decode(errors="replace")

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token of one text, (T, V)."""
        self._clear()
        self._decode([(token, place, 0, True) for place, token in enumerate(ids)])
        logits = library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(len(ids), self.n_vocab)).copy()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        ends: bool = True,
    ) -> list[list[int]]:
        """The tokens after each prompt, all in one batch, each a sequence of its own.

        Args:
            temperature: 0 takes the likeliest token.
            ends: whether end-of-text, which is not among the tokens, ends a text.
        """
        chain = _sampler(temperature, top_k)
        self._clear()
        texts: list[list[int]] = [[] for _ in prompts]
        queue = [
            (token, place, number, place + 1 == len(prompt))
            for number, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        for _ in range(new_tokens):
            self._decode(queue)
            last = [(row, number) for row, (*_, number, is_last) in enumerate(queue) if is_last]
            queue = []
            for row, number in last:
                token = library.llama_sampler_sample(chain, self._context, row)
                if ends and library.llama_vocab_is_eog(self._vocabulary, token):
                    continue
                place = len(prompts[number]) + len(texts[number])
                queue.append((token, place, number, True))
                texts[number].append(token)
            if not queue:
                break
        library.llama_sampler_free(chain)
        return texts

    def _clear(self) -> None:
        library.llama_memory_clear(library.llama_get_memory(self._context), True)

    def _decode(self, queue: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run the model over (token, place, sequence, whether its logits are kept)."""
        rows = self._rows
        rows.n_tokens = len(queue)
        for i, (token, place, sequence, is_last) in enumerate(queue):
            rows.token[i], rows.pos[i], rows.logits[i] = token, place, is_last
            rows.n_seq_id[i], rows.seq_id[i][0] = 1, sequence
        if code := library.llama_decode(self._context, rows):
            raise RuntimeError(f"llama.cpp does not decode: {code}")


def _sampler(temperature: float, top_k: int) -> Any:
    chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    parts = [library.llama_sampler_init_greedy()]
    if temperature:
        parts = [
            library.llama_sampler_init_top_k(top_k),
            library.llama_sampler_init_temp(temperature),
            library.llama_sampler_init_dist(0),
        ]
    for part in parts:
        library.llama_sampler_chain_add(chain, part)
    return chain
