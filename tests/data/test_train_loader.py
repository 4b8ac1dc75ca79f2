"""`TrainLoader` gives the batches of Detectron2's own loader and sampler."""

import itertools

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler

from d2kd.data.train_loader import TrainLoader, _Sampler


@pytest.mark.parametrize("start", [0, 3, 10, 27])
def test_sampler_continues_the_order_of_detectron2s_sampler(start):
    whole = itertools.islice(iter(TrainingSampler(10, seed=5)), start + 12)
    rest = itertools.islice(iter(_Sampler(10, seed=5, start=start)), 12)
    assert list(whole)[start:] == list(rest)


def test_loader_starts_at_the_place_of_the_step():
    dataset = list(range(10))
    node = L(build_detection_train_loader)(
        dataset=dataset, mapper=int, total_batch_size=2, aspect_ratio_grouping=False, num_workers=0
    )
    stream = [x for batch in itertools.islice(TrainLoader(node)(0, 5), 8) for x in batch]
    rest = [x for batch in itertools.islice(TrainLoader(node)(3, 5), 5) for x in batch]
    assert stream[6:] == rest
    assert sorted(stream[:10]) == dataset  # an epoch sees every image once
    accumulated = [x for b in itertools.islice(TrainLoader(node, 2)(2, 5), 4) for x in b]
    assert stream[8:] == accumulated


def test_a_custom_sampler_continues_over_segments():
    node = L(build_detection_train_loader)(
        dataset=list(range(10)),
        mapper=int,
        sampler=L(TrainingSampler)(size=10, shuffle=False),
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=0,
    )
    loader = TrainLoader(node)
    first = list(itertools.islice(iter(loader(0, 5)), 2))
    second = list(itertools.islice(iter(loader(2, 5)), 3))
    assert [x for batch in first + second for x in batch] == list(range(10))


def test_training_set_without_images_is_an_error_that_names_it():
    node = L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="toy_empty"), mapper=int, total_batch_size=2
    )
    DatasetCatalog.register("toy_empty", lambda: [])
    try:
        with pytest.raises(ValueError, match=r"dataloader.train: expected images .*toy_empty"):
            TrainLoader(node).prepare()
    finally:
        DatasetCatalog.remove("toy_empty")
