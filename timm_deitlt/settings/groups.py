"""Groups of settings that several rooms treat alike."""

# Values of --teacher that are no network
NO_NETWORK = ('none', 'labels')

# Settings of the place, the machine and the log, and of where a run begins and stops. A run may go on with others, and
# runs that differ in nothing else count as equal
NOT_TRAINED = frozenset({
    'output', 'experiment', 'resume', 'branch_from', 'stop_epoch', 'report', 'save_interval', 'save_images',
    'data_dir', 'dataset_download', 'teacher_cache',
    'device', 'workers', 'pin_mem', 'validation_batch_size', 'auto_speed', 'cache_images',
    'distributed', 'local_rank', 'rank', 'world_size',
    'log_interval', 'log_tensorboard', 'log_trackio', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id',
})
