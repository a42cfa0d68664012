"""Small language models, from a dataset to a registered model, reproducibly.

Train, step by step:

    import slm

    config = slm.load_recipe("quickstart", {"train.max_steps": 100})
    source = slm.download(config)
    shards = slm.encode(config, source)
    run = slm.train(config, shards)
    evaluation = slm.evaluate(config, run, shards)
    print(evaluation.val_bpb)

Begin with your own data, in a folder of its own, by a recipe that fits it:

    slm.init("articles", "articles.jsonl")

All stages in one call: `slm.run("quickstart")`. A result that is complete is reused; what that will
be, and why, `slm.plan("quickstart")` shows before.

Sample, from a run or from the registry:

    [text] = slm.sample("models:/slm@champion", "Once upon a time", temperature=0.8, seed=1)
    model = slm.load_model("models:/slm@champion")  # once, for many calls
    for text in slm.sample(model, ["Once upon a time", "One day"], top_k=50, seed=1):
        print(text.prompt + text.completion)

Look at a run:

    run = slm.open_run("quickstart-3693316e0b15")
    run.config, run.plan, run.evaluation.val_bpb, run.best.step

Compare any number of runs, on the same held-out documents:

    slm.compare("quickstart-*").rankings[0].groups[0].settings  # of the best

Each name is imported when it is first used, so that `import slm` loads nothing heavy.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "load_recipe": "slm.recipes.load",
    "download": "slm.source.download",
    "initial_model": "slm.registry.initial",
    "make_tokenizer": "slm.orchestration.encoding",
    "encode": "slm.orchestration.encoding",
    "encode_part": "slm.orchestration.encoding",
    "mix": "slm.tokens.mixture.joining",
    "train": "slm.training.launch",
    "resume": "slm.training.launch",
    "watch": "slm.sweeps.watch",
    "stop": "slm.sweeps.stop",
    "finish": "slm.training.derive",
    "train_longer": "slm.training.derive",
    "evaluate": "slm.evaluation.evaluate",
    "benchmark": "slm.evaluation.benchmark.benchmark",
    "write_report": "slm.report.write",
    "report_index": "slm.comparison.reports",
    "register": "slm.registry.register",
    "promote": "slm.registry.gate",
    "run": "slm.orchestration.outline",
    "sweep": "slm.orchestration.sweep_outline",
    "plan_sweep": "slm.orchestration.sweep_outline",
    "choose_winner": "slm.sweeps.winner",
    "promote_winner": "slm.orchestration.sweep_winner",
    "ladder": "slm.orchestration.ladder_outline",
    "init": "slm.project.start",
    "plan": "slm.planning.plan",
    "compare": "slm.comparison.compare",
    "batch_rows": "slm.inspection.batch",
    "find_text": "slm.inspection.seen",
    "data_card": "slm.inspection.card",
    "push": "slm.store.push",
    "pull": "slm.store.pull",
    "open_run": "slm.registry.opening",
    "lineage": "slm.registry.lineage",
    "load_model": "slm.registry.opening",
    "sample": "slm.registry.sampling",
    "export": "slm.registry.exporting",
    "verify_published": "slm.registry.published",
    "serve": "slm.server.listen",
    "doctor": "slm.orchestration.health",
    "launch_slurm": "slm.cluster.slurm",
    "launch_kubernetes": "slm.cluster.kubernetes",
    "PipelineConfig": "slm.config.pipeline",
    "DataRoot": "slm.run_folder.data_root",
    "RunFolder": "slm.run_folder.run",
    "SlmError": "slm.errors",
    "UserError": "slm.errors",
}

__all__ = list(_MODULES)  # a test holds them to __init__.pyi


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'slm' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
