"""What other tools call the options of this library, so that a message can name the option that is meant (no torch)."""

from __future__ import annotations

from collections.abc import Collection

from neuralcollapse.errors import nearest

_CALLED = {
    "learning_rate": "lr base_lr init_lr initial_lr max_lr alpha step_size_lr rate eta learningrate lr_rate",
    "weight_decay": "wd l2 decay l2_reg l2_penalty reg lambda_w weightdecay lam lambda lamb weight_reg",
    "feature_decay": "lambda_h feature_reg h_decay",
    "bias_decay": "lambda_b bias_reg b_decay",
    "batch_size": "bs batch b batchsize train_batch_size per_device_train_batch_size mini_batch_size "
    "eval_batch_size test_batch_size",
    "epochs": "epoch e num_epochs n_epochs max_epochs nb_epochs num_train_epochs total_epochs train_epochs nepochs",
    "network": "model arch architecture backbone net model_name model_type encoder model_name_or_path "
    "mlp resnet resnet18 cnn",
    "network_options": "model_args model_kwargs model_config net_args",
    "frame": "classifier head etf fixed_etf fix_classifier simplex last_layer",
    "layer": "classifier head fc last_layer head_name classifier_name",
    "feature_dim": "d dim feat_dim embed_dim embedding_dim feature_dimension features_dim num_features",
    "dim": "d feature_dim feat_dim embed_dim embedding_dim feature_dimension",
    "width": "hidden hidden_size hidden_dim hidden_width hidden_dims num_hidden",
    "depth": "num_layers n_layers layers_count nlayers",
    "data": "dataset ds data_dir data_path data_root dataset_name train_data root datadir train_dir data_name",
    "outside": "ood ood_data out_data ood_dataset outlier outliers out_dataset",
    "inside": "test id id_data in_data in_distribution test_data test_features",
    "test_data": "test test_file test_features val val_data valid_data test_dataset",
    "device": "accelerator gpu gpus num_gpus n_gpus gpu_ids cuda use_cuda use_gpu cpu no_cuda",
    "accelerator": "device gpu cuda use_cuda use_gpu cpu no_cuda",
    "devices": "gpus num_gpus n_gpus ngpus nproc nproc_per_node world_size num_devices gpu_ids",
    "nodes": "num_nodes nnodes n_nodes",
    "precision": "amp fp16 bf16 half mixed_precision dtype use_amp",
    "out": "o output out_dir output_dir out_path outdir save_dir save_path log_dir logdir exp_dir results_dir "
    "work_dir default_root_dir run_dir run output_path outfile output_file name exp_name run_name tag",
    "force": "f overwrite overwrite_output_dir exist_ok replace",
    "resume": "resume_from resume_from_checkpoint ckpt_path continue load restart checkpoint",
    "checkpoints": "checkpoint ckpt ckpts weights ckpt_path checkpoint_path pretrained resume load state_dict "
    "checkpoint_dir weights_path",
    "config": "cfg c config_file conf yaml config_path hparams",
    "print_config": "show_config show dump_config",
    "seed": "random_seed manual_seed rng_seed random_state pl_global_seed",
    "optimizer": "optim opt optimiser solver method algorithm",
    "schedule": "scheduler lr_scheduler lr_schedule sched lr_scheduler_type lr_policy "
    "cosine multistep anneal annealing",
    "decay_factor": "gamma lr_gamma lr_decay lr_decay_rate",
    "decay_every": "step_size lr_step_size lr_decay_every lr_decay_epochs",
    "milestones": "lr_milestones lr_steps lr_drop",
    "momentum": "mom beta",
    "gradient_clip": "clip grad_clip clip_grad max_grad_norm gradient_clip_val clip_norm clip_grad_norm",
    "loss": "criterion loss_fn loss_function objective label_smoothing smoothing focal focal_gamma",
    "augment": "aug augmentation data_aug transform transforms aa",
    "image_size": "img_size input_size resolution size imgsz crop_size",
    "channels": "in_channels num_channels in_chans input_channels rgb",
    "in_channels": "channels num_channels in_chans input_channels",
    "samples_per_class": "n_per_class num_per_class subset samples num_samples shots n",
    "samples": "n samples_per_class n_per_class num_samples counts class_counts",
    "imbalance": "imb imb_factor imbalance_ratio imb_ratio imb_type imbalance_factor long_tail",
    "label_noise": "noise noise_rate corrupt corruption",
    "random_labels": "shuffle_labels random_targets",
    "measure_every": "val_every test_every "
    "eval_every log_every eval_freq log_interval eval_interval val_interval print_freq eval_steps "
    "check_val_every_n_epoch every log_freq",
    "measure_at": "epoch_list measure_epochs",
    "checkpoint_every": "save_every save_freq checkpoint_freq save_interval ckpt_every ckpt_freq save_steps",
    "loggers": "logger log wandb tensorboard use_wandb report_to mlflow tracker tb wandb_project use_tensorboard",
    "stop_on": "early_stopping early_stop monitor es_monitor",
    "patience": "early_stopping_patience es_patience",
    "compile": "torch_compile use_compile",
    "certify_head": "certify certificate",
    "layers": "layer layer_names hooks inner_layers",
    "normalize": "mean std norm normalise normalization",
    "num_classes": "classes k nclasses n_classes num_labels nb_classes class_count",
    "classes": "num_classes k n_classes nclasses num_labels",
    "class_names": "names labels_file id2label classes label_names",
    "per_class": "classwise by_class class_table",
    "ignore_index": "ignore_label pad_id pad_token_id",
    "pairs": "num_pairs max_pairs",
    "starts": "num_starts n_starts restarts runs trials num_seeds",
    "method": "optimizer optim opt solver algorithm",
    "no_bias": "bias without_bias nobias",
    "scale": "size preset profile",
    "jobs": "j workers num_workers n_jobs parallel processes num_jobs",
    "format": "type kind ext fmt pdf png svg html markdown md to",
    "json": "as_json to_json",
    "strategy": "ddp distributed parallel",
    "trust_code": "trust_remote_code trust",
}
"""Our name -> what it is called elsewhere."""

_NEEDLESS = {
    "SGD has momentum as given, and not Nesterov's": "nesterov",
    "learning rates have no warm-up; decay may have one, --decay-warmup": "warmup lr_warmup warmup_epochs "
    "lr_warmup_epochs warmup_steps num_warmup_steps warmup_lr warmup_ratio",
    "a training is as long as its --epochs, passes over the data": "steps max_steps num_steps iterations max_iters",
    "images are in memory, and no worker has to load them": "num_workers workers n_workers dataloader_num_workers "
    "pin_memory num_loaders persistent_workers",
    "the data say how many classes there are": "num_classes n_classes nclasses num_labels classes k",
    "a data set comes with its test set": "test_data val_data valid_data test_dataset val_dataset val test",
    "data are fetched if they are not there": "download",
}
"""Why an option that other tools have does not exist -> its names."""

_elsewhere: dict[str, list[str]] = {}
for _ours, _theirs in _CALLED.items():
    for _name in _theirs.split():
        _elsewhere.setdefault(_name, []).append(_ours)


def option_meant(name: str, known: Collection[str]) -> str:
    """The one of the `known` options that is surely meant by `name`; an empty text where that is not clear.

    It is known but for capitals and hyphens, or other tools call it that, or it is a slip of the finger. Known
    options are written with underscores.
    """
    word = plain(name)
    if word in known:
        return word
    called = next((ours for ours in _elsewhere.get(word, ()) if ours in known), "")
    return called or nearest(word, known)


def option_hint(name: str, known: Collection[str]) -> str:
    """The hint ` (did you mean 'x'?)` for an option that does not exist; an empty text where none is surely meant."""
    found = option_meant(name, known)
    return f" (did you mean {found!r}?)" if found else ""


def needless(name: str) -> str:
    """Why training has no such option, in words; an empty text where nothing is known of it."""
    return next((why for why, names in _NEEDLESS.items() if plain(name) in names.split()), "")


def plain(name: str) -> str:
    """An option's name as in Python: without leading hyphens, in small letters, with underscores."""
    return name.lstrip("-").replace("-", "_").lower()
