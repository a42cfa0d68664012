"""Settings that do not exist, and which one is meant: other tools' names first, then likeness.

The names come first: `lr` is nearer to `final_lr` by its letters, and would be the wrong setting.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher

from slm.errors import MAX_EXCERPT, UserError, excerpt, listing

MIN_LIKENESS = 0.8  # of two names, 1 is the same: max_step for max_steps, never lr for final_lr
MIN_SECTION_LIKENESS = 0.6  # of their sections, where several have a setting of that name
MAX_SUGGESTIONS = 3

# Our setting → what nanoGPT, litgpt, torchtitan, Lightning and transformers call it.
_OTHER_NAMES = {
    "data.columns": "additional_columns extra_columns keep_columns meta_columns metadata_columns",
    "data.documents": "limit max_docs max_documents max_samples max_train_samples num_samples",
    "data.path": "corpus data_dir data_path dataset dataset_name dataset_path file files folder "
    "input input_file train_data train_file",
    "data.phases": "curriculum data_curriculum data_phases",
    "data.runner": "backend engine executor task_runner",
    "data.runner_address": "cluster_address dask_address ray_address scheduler_address",
    "data.sources": "blend data_mix data_mixture dataset_mixer dataset_mixture datasets mix "
    "mixture train_configs",
    "data.tokenizer.path": "tokenizer_file tokenizer_name tokenizer_path",
    "data.tokenizer.special_tokens": "additional_special_tokens user_defined_symbols",
    "data.tokenizer.train": "train_tokenizer",
    "data.text_column": "column content_column text_field text_key",
    "data.val_fraction": "test_size val_ratio val_size val_split_ratio validation_split",
    "data.vocab_size": "n_vocab padded_vocab_size vocab vocabulary_size",
    "data.workers": "dataloader_num_workers n_workers num_proc num_workers",
    "model.architecture": "arch model_type",
    "model.dropout": "attention_dropout attn_dropout attn_pdrop drop dropout_prob dropout_rate "
    "embd_pdrop hidden_dropout p_dropout resid_pdrop",
    "model.n_embd": "d_model dim embd embed_dim embedding_dim embedding_size emb_dim hidden_dim "
    "hidden_size model_dim n_embed width",
    "model.n_head": "heads n_heads num_attention_heads num_heads",
    "model.n_inner": "d_ff ff_dim ffn_dim ffn_hidden_size intermediate_size mlp_dim",
    "model.n_kv_head": "n_kv_heads n_query_groups num_key_value_heads num_kv_heads",
    "model.n_layer": "layers n_blocks n_layers num_blocks num_hidden_layers num_layers",
    "model.rope_theta": "rope_base",
    "model.seq_len": "block_size context context_len context_length context_size context_window "
    "ctx ctx_len max_len max_length max_position_embeddings max_seq_len max_seq_length n_ctx "
    "n_positions seq_length sequence_len sequence_length",
    "registry.model": "model_name",
    "registry.tracking_uri": "mlflow mlflow_tracking_uri mlflow_uri tracking",
    "report.language": "lang",
    "report.max_new_tokens": "max_gen_tokens",
    "report.prompts": "prompt",
    "report.temperatures": "temperature",
    "report.top_ks": "top_k",
    "size": "model_size n_parameters n_params num_parameters num_params param_count parameters",
    "train.beta1": "adam_beta1 beta_1 betas",
    "train.beta2": "adam_beta2 beta_2",
    "train.checkpoint_every": "checkpoint_interval ckpt_interval save_every save_interval "
    "save_steps",
    "train.compile": "torch_compile",
    "train.cooldown": "cooldown_frac cooldown_steps decay_fraction decay_steps wsd_decay",
    "train.device": "accelerator cuda gpu use_cpu use_cuda use_gpu",
    "train.document_mask": "attention_boundary block_cross_document_attention doc_mask "
    "document_masking intra_document_mask reset_attention_mask sample_packing",
    "train.epochs": "max_epochs n_epochs num_epochs num_train_epochs",
    "train.evaluate_documents": "eval_batches eval_iters eval_samples val_batches",
    "train.evaluate_every": "eval_every eval_freq eval_interval eval_steps val_check_interval "
    "val_every val_interval",
    "train.final_lr": "end_lr final_learning_rate lr_min min_learning_rate min_lr",
    "train.grad_clip": "clip clip_grad clip_grad_norm grad_norm_clip gradient_clip_val "
    "gradient_clipping max_grad_norm",
    "train.init_from": "base_model from_pretrained init_checkpoint init_weights "
    "initial_checkpoint_dir initial_load_path load_from model_name_or_path model_path "
    "pretrained pretrained_model pretrained_model_name_or_path pretrained_path start_from "
    "warm_start warm_start_from",
    "train.keep_checkpoints": "keep save_total_limit",
    "train.launch.nnodes": "n_nodes nodes num_machines num_nodes",
    "train.launch.rdzv_endpoint": "main_process_ip master_addr rendezvous rendezvous_endpoint",
    "train.learning_rate": "adam_lr base_lr lr max_lr peak_lr",
    "train.max_seconds": "max_minutes max_time seconds time time_limit train_seconds",
    "train.max_steps": "iterations iters max_iterations max_iters n_steps num_iterations num_steps "
    "num_train_steps steps total_steps train_steps",
    "train.max_tokens": "num_tokens total_tokens train_tokens",
    "train.micro_batch_size": "device_batch_size mbs micro_batch per_device_batch_size "
    "per_device_train_batch_size",
    "train.micro_batches": "elastic_parts n_micro_batches num_microbatches",
    "train.muon_learning_rate": "matrix_lr muon_lr",
    "train.optimizer": "optim optimizer_name optimizer_type",
    "train.parallel": "distributed_strategy distributed_type parallelism strategy",
    "train.precision": "amp bf16 dtype fp16 half mixed_precision torch_dtype",
    "train.processes": "devices gpus n_gpus nproc nproc_per_node num_gpus world_size",
    "train.schedule": "lr_decay lr_schedule lr_scheduler lr_scheduler_type scheduler",
    "train.seed": "manual_seed random_seed rng_seed",
    "train.threads": "cpu_threads n_threads num_threads",
    "train.tokens_per_step": "accumulate_grad_batches batch batch_size bs global_batch_size "
    "grad_accum grad_accum_steps gradient_accumulation_steps total_batch_size train_batch_size",
    "train.warmup": "num_warmup_steps warmup_fraction warmup_iters warmup_ratio warmup_steps",
    "train.weight_decay": "wd",
}
OTHER_NAMES = {name: key for key, names in _OTHER_NAMES.items() for name in names.split()}
# What is easily misunderstood about some of them.
_NOTES = {
    "depth": "It derives the width and the rates too; blocks alone are model.n_layer",
    "size": "It counts the parameters inside the blocks, and derives the shape from them",
    "train.cooldown": "It is a fraction of the steps",
    "train.final_lr": "It is a fraction of the peak learning rate",
    "train.init_from": "It names a run, models:/NAME@ALIAS, or hf:FOLDER or hf:ORG/NAME of Hugging "
    "Face",
    "train.learning_rate": "With train.optimizer=muon it is the rate of AdamW's part alone, and "
    "train.muon_learning_rate that of the matrices",
    "train.tokens_per_step": "It counts tokens: the rows of all devices and passes, times "
    "model.seq_len",
    "train.warmup": "It is a fraction of the steps",
}


def unknown_setting(key: str, valid: Iterable[str]) -> UserError:
    """The error for a setting that does not exist, with the one that is probably meant."""
    return UserError(f"unknown setting {excerpt(repr(key))}: {suggestion(key, valid)}")


def suggestion(key: str, valid: Iterable[str]) -> str:
    """Which of the valid settings may be meant, as the end of a message."""
    names = list(valid)
    near = nearest(key, names)
    if near:
        note = f" {_NOTES[near[0]]}" if len(near) == 1 and near[0] in _NOTES else ""
        return f"did you mean {' or '.join(map(repr, near))}?{note}"
    section = key.rpartition(".")[0]
    own = [name for name in names if name.rpartition(".")[0] == section != ""]
    if not own:
        return "`slm recipes --explain` lists all settings"
    return f"{section} has {listing(sorted(name.rpartition('.')[2] for name in own))}"


def nearest(key: str, valid: Iterable[str]) -> list[str]:
    """The valid settings that a key may mean: mostly one or none, the likeliest first.

    batch_size → train.tokens_per_step; train.max_step → train.max_steps; seed → the three of them.
    """
    if len(key) > MAX_EXCERPT:
        return []
    section, _, name = key.lower().replace("-", "_").rpartition(".")
    names = list(valid)
    by_name = {each: _likeness(name, each.rpartition(".")[2]) for each in names}
    best = max(by_name.values(), default=0.0)
    meant = OTHER_NAMES.get(name)
    if best < 1 and meant in names:
        return [meant]
    if best < MIN_LIKENESS:
        return []
    near = [each for each, likeness in by_name.items() if likeness == best]
    by_section = {each: _likeness(section, each.rpartition(".")[0]) for each in near}
    if section and max(by_section.values()) >= MIN_SECTION_LIKENESS:
        return [max(near, key=by_section.__getitem__)]
    outer = min(each.count(".") for each in near)  # data.vocab_size before data.tokenizer's
    return [each for each in near if each.count(".") == outer][:MAX_SUGGESTIONS]


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()
