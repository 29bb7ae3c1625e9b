"""Groups of settings that several rooms treat alike."""

# Values of --teacher that are no network
NO_NETWORK = ('none', 'labels')

# Settings of the place, the machine and the log. They do not change what is trained: a run may be resumed with others,
# and other runs are compared without them
NOT_TRAINED = frozenset({
    'output', 'experiment', 'resume', 'branch_from', 'stop_epoch', 'report', 'save_interval', 'save_images',
    'data_dir', 'list_dir', 'dataset_download', 'teacher_cache',
    'device', 'workers', 'pin_mem', 'validation_batch_size', 'auto_speed', 'cache_images',
    'distributed', 'local_rank', 'rank', 'world_size',
    'log_interval', 'log_tensorboard', 'log_trackio', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id',
})
