"""Data sets as others store them: Parquet files of Hugging Face and shards of WebDataset."""
import io
import json
import tarfile

from PIL import Image


def encoded(value):
    file = io.BytesIO()
    Image.new('RGB', (4, 4), (value, 0, 0)).save(file, 'png')
    return {'bytes': file.getvalue(), 'path': None}


def parquet(root, images='img', **others):
    """A folder with train.parquet and test.parquet, as data sets are stored; columns are (values, feature)."""
    import datasets
    import pyarrow.parquet

    length = len(next(iter(others.values()))[0])
    features = datasets.Features({images: datasets.Image(), **{name: kind for name, (_, kind) in others.items()}})
    content = {images: [encoded(i) for i in range(length)], **{name: values for name, (values, _) in others.items()}}
    table = pyarrow.table(content, schema=features.arrow_schema)
    for split in ('train', 'test'):
        (root / 'data').mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, root / 'data' / f'{split}-00000-of-00001.parquet')
    return f'hfds/{root}'


def shard(path, labels, ending='cls', start=0):
    with tarfile.open(path, 'w') as tar:
        def add(name, content):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for number, label in enumerate(labels, start):
            image = io.BytesIO()
            Image.new('RGB', (4, 4), (label, 0, 0)).save(image, 'png')
            add(f'{number:04d}.png', image.getvalue())
            add(f'{number:04d}.{ending}', (f'{label}\n' if ending == 'cls' else json.dumps({'y': label})).encode())
        add(f'{9000 + start}.txt', b'no image')
