"""Labelled pictures: both layouts, everything that can be wrong with them, and transforms."""

import argparse
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from spikedet import task_registry
from spikedet.classification import data, transforms
from spikedet.commands import prepare, shared
from spikedet.commands.main import parsed
from spikedet.errors import DataError, PictureError, UsageError
from support.classes import CLASSES, add_cifar, add_pictures

DESCRIPTION = {"arch": "resnet20", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}


def colour_class(picture):
    """The class of one of these pictures, by its mean colour."""
    high = picture.float().mean((1, 2)) > 125
    return sum(int(h) << bit for bit, h in enumerate(high))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    add_pictures(root, "train", 100)
    add_pictures(root, "test", 2)
    return root


# ---------------------------------------------------------------------- folders


def test_folders_are_classes_by_name(folder):
    samples = data.read([folder], "test")
    assert samples.names == CLASSES and len(samples) == 16
    assert samples.labels == [label for label in range(8) for _ in range(2)]
    for number, label in enumerate(samples.labels):
        picture, given = samples[number]
        assert picture.shape == (3, 32, 32) and picture.dtype == torch.uint8
        assert given == label == colour_class(picture)


def test_a_picture_is_rgb_and_other_files_are_left_alone(tmp_path):
    for name in "ab":
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "notes.txt").write_text("no picture")
        colour = np.full((4, 6, 3), (250, 100, 10), np.uint8)
        Image.fromarray(colour).save(tmp_path / "test" / name / "x.PNG")
    samples = data.read([tmp_path], "test")
    assert len(samples) == 2
    assert samples.picture(1).shape == (3, 4, 6)
    assert samples.picture(1)[:, 0, 0].tolist() == [250, 100, 10]


def test_small_pictures_are_read_once_and_large_ones_each_time(tmp_path, monkeypatch):
    add_pictures(tmp_path, "small", 1, "a")
    add_pictures(tmp_path, "large", 1, "a", size=(65, 64))
    reads = []
    original = data.read_picture
    monkeypatch.setattr(data, "read_picture", lambda path: reads.append(path) or original(path))
    for split, times in (("small", 1), ("large", 2)):
        samples = data.read([tmp_path], split)
        assert reads == []  # nothing is decoded before it is looked at
        assert torch.equal(samples.picture(0), samples.picture(0)) and len(reads) == times
        reads.clear()


def test_splits_and_folders_are_joined(folder, tmp_path):
    assert len(data.read([folder], "train+test")) == 816
    add_pictures(tmp_path, "test", 3)
    both = data.read([folder, tmp_path], "test")
    assert len(both) == 16 + 24 and both.labels[16:19] == [0, 0, 0]
    add_pictures(tmp_path / "other", "test", 1, "xy")
    words = "other/test: 2 classes, number 1 is x; .*test has 8, number 1 is a"
    with pytest.raises(DataError, match=words):
        data.read([folder, tmp_path / "other"], "test")


def test_a_limit_is_a_fixed_choice_over_all_classes(folder):
    once, again = (data.read([folder], "train", limit=80) for _ in range(2))
    assert len(once) == 80 and set(once.labels) == set(range(8))
    assert once.sources == again.sources
    fewer = data.read([folder], "train", limit=20)
    assert fewer.sources == once.sources[:20]
    assert len(data.read([folder], "test", limit=999)) == 16


def test_classes_must_be_those_of_the_network(folder):
    assert data.read([folder], "test", names=CLASSES).names == CLASSES
    for names, words in {
        ("x", "y"): "8 classes, number 1 is a; the network knows 2, number 1 is x",
        (*CLASSES[:-1], "z"): "8 classes, number 8 is h; the network knows 8, number 8 is z",
        CLASSES[:-1]: "8 classes, number 8 is h; the network knows 7, number 8 is none",
    }.items():
        with pytest.raises(DataError, match=words):
            data.read([folder], "test", names=names)


def test_a_split_that_lacks_a_class_is_refused(tmp_path):
    """As when an archive was unpacked in part; ImageNet's test pictures have no classes."""
    add_pictures(tmp_path, "train", 1, "ab")
    add_pictures(tmp_path, "val", 1, "abc")
    words = "train: 2 classes, number 3 is none; .*val has 3, number 3 is c"
    with pytest.raises(DataError, match=words):
        data.read([tmp_path], "train")
    add_pictures(tmp_path, "train", 1, "c")
    (tmp_path / "test").mkdir()
    assert data.read([tmp_path], "train").names == ("a", "b", "c")


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="val: no such folder; expected .*/SPLIT/CLASS/pictures"):
        data.read([folder], "val")
    with pytest.raises(DataError, match="gone/test: no such folder"):
        data.read([tmp_path / "gone"], "test")
    (tmp_path / "cifar10.tar.xz").write_bytes(b"archive")
    with pytest.raises(DataError, match="cifar10.tar.xz: is a file; unpack it"):
        data.read([tmp_path / "cifar10.tar.xz"], "test")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="test: no class folders here"):
        data.read([tmp_path], "test")
    add_pictures(tmp_path, "val", 1, "ab")
    (tmp_path / "val/b/000.png").unlink()
    with pytest.raises(DataError, match="val/b: no pictures of this class"):
        data.read([tmp_path], "val")


def test_a_truncated_picture_is_named_when_it_is_reached(tmp_path):
    add_pictures(tmp_path, "test", 2, "ab", suffix="jpg")
    cut = tmp_path / "test/b/000.jpg"
    cut.write_bytes(cut.read_bytes()[:-400])
    samples = data.read([tmp_path], "test")
    with pytest.raises(PictureError, match="test/b/000.jpg: truncated or damaged"):
        list(data.batches(samples, DESCRIPTION, 32, 4))


# ---------------------------------------------------------------------- CIFAR's own files


@pytest.mark.parametrize("kind", [datasets.CIFAR10, datasets.CIFAR100])
def test_cifar_as_its_authors_store_it(tmp_path, monkeypatch, kind):
    place = add_cifar(tmp_path, monkeypatch, kind)
    test = data.read([tmp_path], "test")
    assert test.names == ("plane", "car", "bird") and test.labels == [2, 0, 1]
    stored = pickle.loads((place / kind.test_list[0][0]).read_bytes())["data"]
    assert torch.equal(test.picture(1), torch.from_numpy(stored[1]).view(3, 32, 32))
    assert len(data.read([place], "train+test")) == 3 * (len(kind.train_list) + 1)


def test_cifar_files_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    place = add_cifar(tmp_path / "ten", monkeypatch, labels=(0, 3))
    with pytest.raises(DataError, match="ten: a picture has class 3; expected 0 to 2"):
        data.read([tmp_path / "ten"], "test")
    with pytest.raises(DataError, match="CIFAR has no split 'val'; expected train or test"):
        data.read([tmp_path / "ten"], "val")
    (place / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(DataError, match="ten: CIFAR10 is incomplete, damaged or not unpacked"):
        data.read([tmp_path / "ten"], "test")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/cifar-100-python.tar.gz").write_bytes(b"half")
    with pytest.raises(DataError, match="half: CIFAR100 is incomplete"):
        data.read([tmp_path / "half"], "train")


def test_two_data_sets_in_one_folder_must_be_told_apart(tmp_path, monkeypatch):
    add_cifar(tmp_path, monkeypatch)
    hundred = add_cifar(tmp_path, monkeypatch, datasets.CIFAR100, labels=(1,))
    with pytest.raises(DataError, match="two data sets; name one of them, as in .*cifar-10-b"):
        data.read([tmp_path], "test")
    assert data.read([hundred], "test").labels == [1]


def test_prepare_cifar_says_what_is_there_or_why_it_is_not(tmp_path, monkeypatch, capsys):
    add_cifar(tmp_path / "there", monkeypatch)
    words = ["cifar10", str(tmp_path / "there")]
    prepare.run(parsed("prepare", words))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in shown] == [
        "train, 15 pictures of 3 classes", "test, 3 pictures of 3 classes",
    ]  # fmt: skip

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(DataError, match=r"cifar100 could not be downloaded \(no route to host\)"):
        data.download("cifar100", tmp_path)
    with pytest.raises(UsageError, match="no data set 'mnist'.*cifar10, cifar100"):
        data.download("mnist", tmp_path)


# ---------------------------------------------------------------------- tuning pictures


def test_every_fiftieth_picture_of_a_class_is_kept_aside(folder):
    samples = data.read([folder], "train")
    train, tune = samples.split_off_tuning()
    assert (len(train), len(tune)) == (784, 16)
    assert {p.name for p in tune.sources} == {"049.png", "099.png"}
    assert tune.labels == [label for label in range(8) for _ in range(2)]
    assert set(train.sources).isdisjoint(tune.sources)
    assert samples.split_off_tuning()[1].sources == tune.sources
    with pytest.raises(DataError, match="16 pictures are too few"):
        data.read([folder], "test").split_off_tuning()


def test_what_is_kept_aside_does_not_depend_on_a_limit(folder):
    kept = set(data.read([folder], "train").split_off_tuning()[1].sources)
    samples = data.read([folder], "train", limit=300)
    train, tune = samples.split_off_tuning()
    assert set(tune.sources) == kept & set(samples.sources) and len(train) + len(tune) == 300
    assert kept.isdisjoint(train.sources)
    with pytest.raises(DataError, match="no class has so many"):
        train.split_off_tuning()


def test_unlabelled_pictures_stand_behind_the_others(tmp_path, folder):
    add_pictures(tmp_path / "more", "deep", 2, "xy")
    train, tune = data.read([folder], "train").split_off_tuning()
    both = train.with_unlabelled([tmp_path / "more", folder / "test"])
    assert both.labels == train.labels + [data.UNLABELLED] * (4 + 16)
    assert both.sources[:-20] == train.sources and both.names == train.names
    assert [p.name for p in both.sources[-20:-16]] == ["000.png", "001.png"] * 2
    assert both.fingerprint() != train.fingerprint()
    for seed in range(3):  # neither thresholds nor layers are fitted to them
        known = both.pick(300, seed)
        assert known.sources == train.pick(300, seed).sources
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no pictures in this folder"):
        train.with_unlabelled([tmp_path / "more", tmp_path / "empty"])


# ---------------------------------------------------------------------- transforms


def augmented(picture, *how, **more):
    """A picture after both transforms of training."""
    single, whole = transforms.augmentation(*how, **more)
    moved = single(picture)
    assert moved.dtype == torch.uint8
    return whole(moved[None])[0]


def test_pictures_are_normalised_by_the_description():
    picture = torch.full((3, 32, 32), 51, dtype=torch.uint8)  # 0.2
    tensor = transforms.view(DESCRIPTION, 32)(picture)
    assert tensor.shape == (3, 32, 32) and tensor.dtype == torch.float32
    wanted = [(0.2 - 0.5) / 0.2, (0.2 - 0.4) / 0.25, (0.2 - 0.3) / 0.5]
    assert tensor[:, 3, 5].tolist() == pytest.approx(wanted, abs=1e-6)
    assert transforms.view(DESCRIPTION, 32)(picture[:, :20]).shape == (3, 32, 32)


@pytest.mark.parametrize("description", [
    {"arch": "resnet18", "form": "imagenet"}, {"arch": "torchvision/resnet18"},
])  # fmt: skip
def test_imagenet_pictures_keep_their_shape_and_lose_their_border(description):
    picture = torch.zeros(3, 128, 256, dtype=torch.uint8)
    picture[..., 64:192] = 255  # the middle half
    tensor = transforms.view(description, 112)(picture)  # the centre of 128 x 256
    assert tensor.shape == (3, 112, 112)
    white = (1 - torch.tensor(transforms.MEAN)) / torch.tensor(transforms.STD)
    assert torch.allclose(tensor, white.view(3, 1, 1).expand_as(tensor), atol=1e-5)


def test_a_form_that_there_is_not():
    with pytest.raises(UsageError, match="form: mnist; expected one of cifar, imagenet"):
        transforms.view({"form": "mnist"}, 32)


def test_crops_are_shifted_or_mirrored_copies():
    picture = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    plain = {"mean": [0] * 3, "std": [1] * 3}
    padded = torch.nn.functional.pad(picture, [4] * 4)
    copies = {
        bytes(view[:, y : y + 32, x : x + 32].contiguous().numpy())
        for view in (padded, padded.flip(2))
        for y in range(9)
        for x in range(9)
    }
    torch.manual_seed(0)
    crops = [augmented(picture, plain, 32, "crop") for _ in range(200)]
    crops = [bytes((crop * 255).round().to(torch.uint8).numpy()) for crop in crops]
    assert set(crops) <= copies and len(set(crops)) > 60


@pytest.mark.parametrize("shape", [(3, 4, 500_000), (3, 500_000, 4), (2, 3, 1, 30_001)])
def test_thin_pictures_take_little_memory(shape, monkeypatch):
    """All of it resized would be 64 million pixels, of which the centre is kept."""
    resize, seen = v2.Resize.transform, []
    monkeypatch.setattr(
        v2.Resize, "transform", lambda *given: seen.append(given[1]) or resize(*given)
    )
    picture = torch.zeros(shape, dtype=torch.uint8)
    centre = [side // 2 for side in shape[-2:]]
    picture[..., centre[0] - 2 : centre[0] + 2, centre[1] - 2 : centre[1] + 2] = 255
    tensor = transforms.view({"arch": "resnet18", "form": "imagenet"}, 32)(picture)
    assert tensor.shape == (*shape[:-2], 32, 32) and seen[0].numel() < 20_000
    assert tensor[..., 16, 16].min() > 1.5  # white


def test_ordinary_pictures_are_not_shortened():
    picture = torch.randint(0, 256, (3, 4, 64), dtype=torch.uint8)
    assert transforms.Shorten()(picture) is picture
    assert torch.equal(transforms.Shorten()(picture[:, :2]), picture[:, :2, 16:48])


@pytest.mark.parametrize("form", ["cifar", "imagenet"])
@pytest.mark.parametrize("kind", transforms.AUGMENTATIONS)
def test_every_augmentation_gives_the_size_of_the_network(form, kind):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    how = (picture, {**DESCRIPTION, "form": form}, 24, kind)
    for _ in range(5):
        tensor = augmented(*how)
        assert tensor.shape == (3, 24, 24) and tensor.dtype == torch.float32
        # a normalised uint8 is exactly 0 by no chance; only a cut square is
        cut = int((tensor == 0).all(0).sum())
        assert cut == 0 if kind in ("none", "crop") else 6 * 6 <= cut <= 12 * 12
    fixed = torch.equal(augmented(*how), augmented(*how))
    assert fixed == (kind == "none")


@pytest.mark.parametrize("kind", ["none", "crop"])
def test_what_was_augmented_is_compressed_as_jpeg(kind):
    plain = {"mean": [0] * 3, "std": [1] * 3}
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(3)
    moved = (augmented(picture, plain, 32, kind) * 255).round().to(torch.uint8)
    torch.manual_seed(3)
    tensor = augmented(picture, plain, 32, kind, jpeg=75)
    file = io.BytesIO()
    Image.fromarray(moved.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
    wanted = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert (tensor - wanted).abs().max() < 0.02 < (moved / 255 - wanted).abs().max()


def test_cutout_is_cut_behind_the_compression():
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    tensor = augmented(picture, DESCRIPTION, 32, "cutout", jpeg=50)
    assert 8 * 8 <= (tensor == 0).all(0).sum() <= 16 * 16  # no uint8 is normalised to exactly 0


@pytest.mark.parametrize("quality", [-1, 101])
def test_a_quality_that_jpeg_does_not_have(quality):
    with pytest.raises(UsageError, match=f"jpeg is {quality}; expected a quality from 1 to 100"):
        transforms.augmentation(DESCRIPTION, 32, jpeg=quality)


def test_an_augmentation_that_there_is_not():
    with pytest.raises(UsageError, match="'mixup'; expected none, crop, cutout, autoaugment"):
        transforms.augmentation(DESCRIPTION, 32, "mixup")


def test_cutout_is_a_square_cut_at_the_border():
    pictures = torch.ones(3, 3, 8, 9)
    places = {"y": torch.tensor([[-2], [3], [6]]), "x": torch.tensor([[-2], [1], [5]])}
    cut = transforms.Cutout(4).transform(pictures, places)
    wanted = torch.ones(3, 3, 8, 9)
    wanted[0, :, 0:2, 0:2] = wanted[1, :, 3:7, 1:5] = wanted[2, :, 6:8, 5:9] = 0
    assert torch.equal(cut, wanted) and bool((pictures == 1).all())


def test_cutout_is_around_any_pixel():
    torch.manual_seed(0)
    drawn = transforms.Cutout(4).make_params([torch.ones(900, 3, 8, 9)])
    assert set(drawn["y"].flatten().tolist()) == set(range(-2, 6))
    assert set(drawn["x"].flatten().tolist()) == set(range(-2, 7))


# ---------------------------------------------------------------------- batches


def test_batches_are_in_order_whatever_the_sizes_of_the_pictures(tmp_path, folder):
    samples = data.read([folder], "test")
    batches = list(data.batches(samples, DESCRIPTION, 32, 7))
    assert [len(b) for b in batches] == [7, 7, 2]
    one_by_one = [transforms.view(DESCRIPTION, 32)(samples.picture(n)) for n in range(16)]
    assert torch.equal(torch.cat(batches), torch.stack(one_by_one))
    add_pictures(tmp_path, "test", 1, "a", size=(40, 32))
    add_pictures(tmp_path / "more", "test", 1, "a", size=(32, 48))
    mixed = data.read([tmp_path, tmp_path / "more"], "test")
    (batch,) = data.batches(mixed, DESCRIPTION, 32, 2)
    assert batch.shape == (2, 3, 32, 32)


def test_training_batches_never_end_and_have_their_labels(folder):
    samples = data.read([folder], "test")
    plain = {"mean": [0] * 3, "std": [1] * 3}
    endless = data.augmented(samples, plain, 32, 6, seed=1)
    taken = [next(endless) for _ in range(5)]  # more than the 16 pictures
    assert all(b["img"].shape == (6, 3, 32, 32) and b["label"].shape == (6,) for b in taken)
    for batch in taken:
        inner = batch["img"][:, :, 4:-4, 4:-4] * 255
        assert [colour_class(p) for p in inner] == batch["label"].tolist()
    first = next(data.augmented(samples, plain, 32, 6, seed=1))["label"]
    assert torch.equal(first, taken[0]["label"])
    assert len(next(data.augmented(samples, plain, 32, 99))["label"]) == 16


def test_training_batches_are_compressed_as_told(folder):
    samples = data.read([folder], "test")
    plain = {"mean": [0] * 3, "std": [1] * 3}
    drawn = []
    for jpeg in (0, 30):
        torch.manual_seed(3)
        drawn.append(next(data.augmented(samples, plain, 32, 6, seed=1, jpeg=jpeg))["img"] * 255)
    cropped, compressed = drawn
    wanted = [transforms.Jpeg(30)(p) for p in cropped.round().to(torch.uint8)]
    assert torch.equal(compressed.round(), torch.stack(wanted).float())
    assert not torch.equal(compressed.round(), cropped.round())


def test_loader_processes_get_decoded_pictures_and_draw_them_alike(folder):
    samples = data.read([folder], "test")
    draws = []
    for begun in (5, 6):  # what this process drew before does not matter
        torch.manual_seed(begun)
        endless = data.augmented(samples, DESCRIPTION, 32, 6, seed=1, workers=2)
        draws.append([next(endless) for _ in range(3)])
    assert len(samples.decoded) == len(samples) == 16
    for one, other in zip(*draws, strict=True):
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["label"], other["label"])
    alone = next(data.augmented(samples, DESCRIPTION, 32, 6, seed=1))
    assert torch.equal(alone["label"], draws[0][0]["label"])  # the same pictures


def test_fingerprint_stays_when_pictures_were_looked_at(tmp_path):
    add_pictures(tmp_path, "train", 2, "ab", size=(8, 8))
    samples = data.read([tmp_path], "train")
    before = samples.fingerprint()
    assert samples.picture(0) is samples.picture(0)  # decoded once
    assert samples.fingerprint() == before


def test_the_task_of_data_folders(tmp_path):
    for name in ("cifar10/cifar-10-batches-py", "folders/train", "VOCdevkit/VOC2007"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/cifar-100-python.tar.gz").touch()
    folders = ("cifar10", "cifar10/cifar-10-batches-py", "packed", "folders", "VOCdevkit")
    tasks = [task_registry.of_data([tmp_path / name]) for name in folders]
    assert tasks == ["classification"] * 4 + ["detection"]


def test_data_of_another_task_are_refused(tmp_path):
    for name in ("folders/train", "VOCdevkit/VOC2007", "neither/pictures"):
        (tmp_path / name).mkdir(parents=True)
    detection, classification = map(task_registry.named, ("detection", "classification"))
    with pytest.raises(DataError, match="folders: this data is for classification; the network"):
        task_registry.expect_data(detection, [tmp_path / "VOCdevkit", tmp_path / "folders"])
    with pytest.raises(DataError, match="VOCdevkit: this data is for detection; the network"):
        task_registry.expect_data(classification, [tmp_path / "VOCdevkit"])
    for task in (detection, classification):  # which each reader has its own words for
        task_registry.expect_data(task, [tmp_path / "neither"])


def test_a_test_is_on_val_where_there_is_no_test(tmp_path):
    for name in ("both/test", "both/val", "imagenet/val"):
        (tmp_path / name).mkdir(parents=True)
    args = argparse.Namespace(split=None, data=[tmp_path / "imagenet"])
    assert shared.split(args, "classification", test=True) == "val"
    assert shared.split(args, "classification") == "train"
    args.data.append(tmp_path / "both")
    assert shared.split(args, "classification", test=True) == "test"
    args.split = "val+test"
    assert shared.split(args, "classification", test=True) == "val+test"


def test_links_to_other_classes_and_hidden_folders_bring_no_pictures(tmp_path):
    """Else a link to a folder above, in a class, gives it the pictures of all others."""
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{number}.png")
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (8, 8)).save(more / "4.png")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    for name, target in {"up": "..", "b": "../b", "far": "../..", "more": more}.items():
        (tmp_path / "train/a" / name).symlink_to(target)
    samples = data.read([tmp_path], "train")
    assert samples.names == ("a", "b") and samples.labels == [0] * 4 + [1] * 3
    names = [path.name for path in samples.sources]
    assert sorted(names) == sorted(["0.png", "1.png", "2.png"] * 2 + ["4.png"])
