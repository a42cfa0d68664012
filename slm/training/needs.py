"""What a training needs at least, from its config alone: nothing is allocated or timed.

Nothing here loads PyTorch. A test holds the sizes to those of real models.
"""

import math

from slm.config import ModelConfig, PipelineConfig
from slm.errors import UserError
from slm.records import Frozen, ShardCount
from slm.size import block_matrices, inner_width, kv_width, non_embedding

MAX_BYTES = 2**63 - 1  # of a tensor, which 64 bits count


class Needs(Frozen):
    """What a model is and what its training holds at least, from the config alone.

    Activations, and what libraries take, are not counted: a training never needs less than this.
    """

    parameters: int
    non_embedding: int  # of the matrices inside the blocks
    vocabulary: int  # of the embedding, which is the output layer too
    flops_per_token: float  # forward and backward
    weights: int  # bytes, as are the others
    gradients: int
    optimizer: int
    batches: int  # tokens of two steps: one is prepared while the other is trained on

    @property
    def vocabulary_flops_per_token(self) -> float:
        """Of `flops_per_token`, those of the output layer; the rest is inside the blocks."""
        return 6.0 * self.vocabulary

    @property
    def checkpoint(self) -> int:
        """The bytes of a checkpoint; while it is written they are in memory a second time."""
        return self.weights + self.optimizer

    @property
    def state(self) -> int:
        return self.weights + self.gradients + self.optimizer


def vocabulary_size(config: PipelineConfig) -> int:
    """Tokens of the vocabulary, as far as settings and files tell: see `expected_size`."""
    if config.data.tokenizer.path is None:
        return config.data.expected_vocab_size
    from slm.tokens.vocabulary import expected_size

    return expected_size(config)


def measure(config: PipelineConfig) -> Needs:
    """A model's size, from its shape. Raises UserError for a matrix that no memory could hold."""
    model, train = config.model, config.train
    block, vectors = block_matrices(model), block_vectors(model)
    embedding = vocabulary_size(config) * model.n_embd
    learned = model.architecture == "gpt2"
    positions = model.seq_len * model.n_embd if learned else 0
    if 4 * max(*block, embedding, positions) > MAX_BYTES:
        raise UserError(
            f"model.n_embd={model.n_embd}, model.n_inner={model.n_inner}, "
            f"model.seq_len={model.seq_len}: no memory could hold such a matrix"
        )
    inside = non_embedding(model)
    final_norm = (2 if learned else 1) * model.n_embd
    parameters = embedding + positions + inside + model.n_layer * vectors + final_norm
    # AdamW keeps two moments of each parameter, Muon one of each matrix inside the blocks.
    moments = 2 * parameters - (inside if train.optimizer == "muon" else 0)
    # Six per weight that is multiplied, and the causal half of attention, as GPT.flops_per_token.
    flops = 6.0 * (embedding + inside) + 6.0 * model.n_layer * model.n_embd * model.seq_len
    return Needs(
        parameters=parameters,
        non_embedding=inside,
        vocabulary=embedding,
        flops_per_token=flops,
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=4 * moments,
        batches=2 * 8 * train.tokens_per_step,
    )


def block_vectors(model: ModelConfig) -> int:
    """Parameters of a block's norms and biases."""
    width = model.n_embd
    if model.architecture == "gpt2":  # a bias of each matrix; two norms with scale and bias
        return 2 * width + 2 * kv_width(model) + inner_width(model) + width + 4 * width
    return 2 * width + 2 * (width // model.n_head)  # two norms; those of queries and keys


def planned_steps(config: PipelineConfig, data: ShardCount) -> int:
    """The optimizer steps that the config's limit comes to; 0 if it is a limit in seconds."""
    train = config.train
    if train.max_seconds is not None:
        return 0
    tokens = train.max_tokens or (train.epochs or 0) * data.tokens
    steps = train.max_steps or max(1, math.ceil(tokens / train.tokens_per_step))
    if train.max_passes is not None and data.tokens:  # else the data are not known yet
        steps = min(
            steps, max(1, math.floor(train.max_passes * data.tokens / train.tokens_per_step))
        )
    return steps
