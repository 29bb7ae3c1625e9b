"""Flags that are ours."""
from ._flag import SWITCH, allowed, flag

# Names in evaluation.fusion.FUSIONS, whose module imports torch
FUSIONS = ('mean_probs', 'cls_adjusted', 'mean_adjusted', 'count_mix')

OWN_FLAGS = {
    'DeiT-LT': (
        flag('--teacher', 'name of the teacher such as resnet32_sam, or a timm model; labels trains DIST on the labels '
             'too; none trains a plain ViT', default='none', metavar='NAME'),
        flag('--teacher-checkpoint', 'weights of the teacher: a file, a folder or hf-hub:OWNER/NAME (default: from the '
             'cache or the Hub, else trained now)', metavar='FILE'),
        flag('--teacher-source', 'hub uses the published teacher, even if it has another seed or other settings',
             default='auto', choices=('auto', 'hub')),
        flag('--teacher-cache', 'folder that keeps trained teachers (default: ~/.cache/timm_deitlt)', metavar='DIR'),
        flag('--teacher-epochs', "epochs to train the teacher (default: its recipe's)", type=int),
        flag('--teacher-rho', "radius of the teacher's SAM (default: its recipe's)", type=float),
        flag('--teacher-view', "what the teacher sees of an image: the student's view, or a weakly augmented one",
             default='student', choices=('student', 'weak')),
        flag('--teacher-normalize', "mean and std for the teacher's images: its own or the student's",
             default='own', choices=('own', 'student')),
        flag('--teacher-antialias', "antialias when images are resized to the teacher's size (default: on)",
             **SWITCH, default=True),
        flag('--global-batch-size', 'images per update over all devices; --grad-accum-steps is worked out from it '
             '(default: batch-size x grad-accum-steps x devices)', type=int),
        flag('--drw-on', 'experts whose loss is re-weighted by class in stage two (default: dist with a teacher, cls '
             'for LDAM, else none)', choices=('dist', 'cls', 'both', 'none')),
        flag('--drw-start-epoch', 'first epoch of stage two, counted from 0 (default: 11/12 of --epochs)', type=int),
        flag('--drw-beta', 'beta of the effective number of images, which gives the class weights', type=float,
             default=0.9999),
        flag('--keep-mixup-drw', 'keep mixup, cutmix and label smoothing in stage two', action='store_true'),
        flag('--cls-loss', 'loss of CLS on the labels in stage two',
             default='ce', choices=('ce', 'balanced_softmax', 'logit_adjust')),
        flag('--fusion', 'what the run answers, in evaluation and prediction: the mean of the logits of CLS and DIST '
             '(mean) or of their probabilities (mean_probs), CLS without the class prior (cls_adjusted), the mean with '
             'that CLS (mean_adjusted), or a mean weighted by the images of each class (count_mix)', default='mean',
             choices=('mean', *FUSIONS)),
        flag('--logit-adjust-tau', 'weight of the class prior in --cls-loss logit_adjust', type=float, default=1.0),
        flag('--loss', 'loss on the labels; for BCE see --bce-loss',
             type=allowed('--loss'), default='ce', choices=('ce', 'ldam', 'paco')),
        flag('--ldam-margin', 'margin of the rarest class in LDAM', type=float, default=0.5),
        flag('--ldam-scale', "scale of LDAM's logits", type=float, default=30.0),
        flag('--classifier', 'kind of classifier of a CNN', default='linear', choices=('linear', 'cosine')),
        flag('--rho', 'SAM radius of the optimizers samsgd and samadamw', type=float, default=0.05),
        flag('--rho-milestones', 'epochs, counted from 1, at which the SAM radius changes to the next of --rho-values '
             '(default: none)', type=int, nargs='+', default=[]),
        flag('--rho-values', 'SAM radius from each of --rho-milestones on (default: none)', type=float, nargs='+',
             default=[]),
        flag('--sam-every', 'make a SAM update, with its second pass, only in every Nth update; also for a SAM teacher',
             type=int, default=1),
        flag('--sam-adaptive', 'scale the radius by each weight (ASAM)', action='store_true'),
        flag('--filter-bias-and-bn', 'no weight decay on biases and norms (default: on)', **SWITCH, default=True),
        flag('--cutout', 'side in pixels of the black square that is cut out of every image (default: none)', type=int),
        flag('--augment-backend', 'what augments the images: pillow, opencv (about twice as fast on large images, with '
             'the same random draws and nearly the same pixels), or the device that trains (whole batches, with other '
             'draws of the same distribution)', default='pillow', choices=('pillow', 'opencv', 'device')),
        flag('--force-color-jitter', 'use colour jitter together with --aa', action='store_true'),
        flag('--list-dir', 'folder of the list files of lt/imagenet and lt/inat18 (default: in or beside --data-dir)',
             metavar='DIR'),
        flag('--imbalance-factor', "images of the largest class / images of the smallest (default: the data set's)",
             type=float),
        flag('--imbalance-profile', 'shape of the class counts; reversed: the first class is the rarest', default='exp',
             choices=('exp', 'step', 'exp_reversed', 'step_reversed')),
        flag('--n-max', "images of the largest class (default: the data set's)", type=int),
        flag('--split-seed', 'seed that chooses the images of subset and hold-out; --seed does not change them',
             type=int, default=0),
        flag('--val-fraction', 'share of the training images that is held out for evaluation (default: 0.1 for a '
             'folder that lacks the split --val-split)', type=float),
        flag('--folds', 'number of folds of a cross-validation: each fold is a training of its own, and each image is '
             'evaluated once (default: none)', type=int),
        flag('--fold', 'train only this one of --folds, counted from 0 (default: all of them)', type=int),
        flag('--class-counts', 'file with the images per class of an iterable data set (default: counted)',
             metavar='FILE'),
        flag('--cache-images', 'GiB of memory in which each process may keep the decoded images of a folder; 0 turns '
             'it off; works only with forked workers', type=float, default=1.0),
        flag('--skip-bad-images', 'replace unreadable images by others of their class, and count them',
             action='store_true'),
        flag('--dry-run', 'print sizes, updates, learning rates, class weights and memory, then stop',
             action='store_true'),
        flag('--world-size', 'number of devices that --dry-run plans for (default: 1)', dest='dry_run_world_size',
             type=int),
        flag('--save-interval', 'epochs between checkpoints; a run that is killed repeats those after the last one',
             type=int, default=1),
        flag('--branch-from', 'start a new run from this milestone of another (default: none)', metavar='FILE'),
        flag('--log-tensorboard', 'log to TensorBoard', action='store_true'),
        flag('--log-trackio', 'log to Trackio on this machine', action='store_true'),
        flag('--auto-speed', 'on: time training steps and use the fastest options; graph: try a CUDA graph too; off: '
             'leave attention, optimizer and memory as PyTorch has them', default='on', choices=('on', 'graph', 'off')),
        flag('--report', 'measure the mechanisms and write report.html and plots/ at the end (default: on)',
             **SWITCH, default=True),
    ),
    'Small data': (
        flag('--guidance', 'weight of locality guidance: blocks of a distilled ViT imitate the feature maps of a CNN '
             'teacher; 0 turns it off, its paper uses 2.5', type=float, default=0.),
        flag('--guidance-blocks', 'student blocks that are guided, counted from 0, one for each of --guidance-stages '
             '(default: spread evenly from the first to the last)', type=int, nargs='+'),
        flag('--guidance-stages', "teacher stages that guide, by timm's numbers; 0 is the stem of a resnet32 "
             '(default: all but the stem)', type=int, nargs='+'),
        flag('--guidance-end', 'share of the epochs after which guidance is off', type=float, default=1.),
        flag('--dense-distill', "weight of DIST's loss on every patch, with the teacher's prediction for that place as "
             'its label, which over the epochs becomes its prediction for the image; 0 turns it off', type=float,
             default=0.),
        flag('--logit-standardize', "standardise each image's logits of student and teacher in soft distillation; "
             'best with --drw-on cls or none, as class weights on DIST outweigh such logits', action='store_true'),
        flag('--init', "initialisation of a ViT's attention: mimetic, like that of trained ViTs, or conditioned, with "
             "orthogonal queries and keys; both set sine-cosine positions too (default: timm's)",
             choices=('mimetic', 'conditioned')),
        flag('--muon-hidden-only', 'let Muon train hidden layers only; its AdamW trains classifiers, embeddings and '
             'tokens', action='store_true'),
        flag('--aug-ramp', 'number of first epochs in which RandAugment, erasing and mixing rise from nothing to full '
             'strength; 0 for full strength at once', type=int, default=0),
    ),
    'PaCo (--loss paco)': (
        flag('--paco-alpha', 'weight of each positive key in the loss', type=float, default=0.05),
        flag('--paco-beta', 'weight of the true class in the loss', type=float, default=1.0),
        flag('--paco-gamma', 'weight of the keys in the denominator of the loss', type=float, default=1.0),
        flag('--paco-temperature', 'temperature of the contrastive loss', type=float, default=0.2),
        flag('--paco-queue', 'number of keys that are kept from earlier updates', type=int, default=8192),
        flag('--paco-dim', 'width of the projection', type=int, default=128),
        flag('--paco-momentum', 'momentum of the key encoder per update', type=float, default=0.999),
        flag('--key-scale', 'smallest and largest area of the random crop of the key view', type=float, nargs=2,
             default=[0.08, 1.0]),
        flag('--key-color-jitter', "brightness, contrast, saturation and hue of the key view's colour jitter",
             type=float, nargs=4, default=[0.4, 0.4, 0.4, 0.0]),
        flag('--key-color-jitter-prob', "probability of the key view's colour jitter", type=float, default=1.0),
    ),
}
