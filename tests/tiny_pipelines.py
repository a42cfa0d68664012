"""A `pipelines.yaml` with the smallest recipe that goes through every stage."""

PIPELINES = """
name: tiny
recipes:
  tiny:
    data: {source: stories, documents: 80, vocab_size: 512, val_fraction: 0.1}
    model: {architecture: qwen3, n_layer: 1, n_head: 2, n_embd: 32, seq_len: 32}
    train:
      {max_steps: 4, tokens_per_step: 128, evaluate_every: 2, checkpoint_every: 2,
      evaluate_documents: 2}
    report:
      prompts: ["Once upon a time"]
      temperatures: [0.8]
      top_ks: [10]
      max_new_tokens: 8
deployments: []
"""
