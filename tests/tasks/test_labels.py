"""Classes of data sets among those of a network: by name, by WordNet id, by a table, and what is said of the others."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

import lora_comp as lc
from lora_comp.data import Sample, load_data, write_image
from lora_comp.data.annotated import VOC_CLASSES as VOC
from lora_comp.errors import LoraCompError
from lora_comp.evaluate import Point, evaluate, record_key
from lora_comp.methods import FitSettings
from lora_comp.networks import load_detector, load_network
from lora_comp.networks.imagenet import imagenet_names
from lora_comp.tasks import load_task
from lora_comp.tasks.labels import Labels, read_table


class Network:
    name = "network"

    def __init__(self, *classes, aliases=()):
        self.classes, self.aliases = list(classes), aliases


class ImageNet(Network):
    def __init__(self, count=1000):
        super().__init__(aliases=imagenet_names(count))
        self.classes = [names[0] for names in self.aliases]


ANIMALS = Network("cat", "hot dog", "tv", "potted plant", "airplane", "hair drier", "Löwe")


@pytest.mark.parametrize(
    "name, index",
    [
        ("cat", 0),
        ("Cat", 0),
        (" CAT ", 0),
        ("hotdog", 1),
        ("hot_dog", 1),
        ("Hot-Dog", 1),
        ("tvmonitor", 2),
        ("TV Monitor", 2),
        ("pottedplant", 3),
        ("aeroplane", 4),
        ("hair dryer", 5),
        ("Lo\u0308we", 6),  # as macOS writes it
        ("dog", None),
        ("cats", None),
        ("", None),
        ("---", None),
    ],
)
def test_names_are_found_without_case_spaces_and_signs_and_by_synonyms(name, index):
    assert Labels(ANIMALS).of([name]).indexes == (index,)


def test_the_exact_name_comes_first():
    network = Network("Cardigan", "cardigan", "sofa", "couch")
    assert Labels(network).of(["cardigan", "Cardigan", "couch", "sofa", "Couch"]).indexes == (1, 0, 3, 2, 3)
    assert Labels(network).of(["CARDIGAN"]).indexes == (None,)


@given(st.permutations([*range(20)]), st.integers(1, 20), st.data())
def test_the_order_and_number_of_a_data_sets_classes_do_not_matter(order, count, data):
    kept = [VOC[i] for i in order[:count]]
    change = data.draw(st.sampled_from([str, str.upper, str.title, lambda name: f" {name[:2]}_{name[2:]}-"]))
    assert Labels(Network(*VOC)).of([change(name) for name in kept]).indexes == tuple(order[:count])


def test_vocs_classes_are_all_found_among_cocos():
    network = load_detector("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", None)
    indexes = Labels(network).of(VOC).indexes
    assert None not in indexes and len(set(indexes)) == 20 and network.classes[indexes[VOC.index("sofa")]] == "couch"


@pytest.mark.parametrize(
    "name, index",
    [
        ("n02099601", 207),
        ("n02099601-golden_retriever", 207),
        ("n02099601_Golden", 207),
        ("golden retriever", 207),
        ("golden_retriever", 207),
        ("tench, Tinca tinca", 0),
        ("Tinca tinca", 0),
        ("missile", 657),
        ("projectile", 744),
        ("crane bird", 134),
        ("crane", None),  # the bird or the machine
        ("n0209960", None),
        ("n020996011", None),
        ("n99999999", None),
        ("207", None),
    ],
)
def test_imagenets_classes_are_found_by_wordnet_ids_and_words(name, index):
    assert Labels(ImageNet()).of([name]).indexes == (index,)


@pytest.mark.parametrize("count", [1000, 11221, 11821, 21841, 21842, 21843])
def test_every_subset_of_imagenet_is_found_by_its_wordnet_ids(count):
    network = ImageNet(count)
    assert Labels(network).of([names[-1] for names in network.aliases]).indexes == tuple(range(count))


def test_torchvisions_names_are_all_imagenets():
    from torchvision.models import ResNet18_Weights

    assert Labels(ImageNet()).of(ResNet18_Weights.DEFAULT.meta["categories"]).indexes == tuple(range(1000))


def test_folders_named_by_all_numbers_are_the_classes_of_these_numbers():
    """As of ImageNetV2; sorted as text, 10 comes before 2."""
    names = sorted(map(str, range(1000)))
    assert Labels(ImageNet()).of(names).indexes == tuple(map(int, names))
    assert Labels(ImageNet()).of(names[:-1]).indexes == (None,) * 999


@pytest.mark.parametrize(
    "names, indexes, ranks",
    [
        (["a", "b", "c"], (0, 1, 2), True),
        (["1", "2", "3"], (0, 1, 2), True),
        (["1", "10", "2"], (None,) * 3, False),  # by torchvision's order or timm's
        (["01", "02", "10"], (0, 1, 2), True),
        (["a", "b"], (None,) * 2, False),
    ],
)
def test_a_network_without_names_has_as_many_classes_in_their_order(names, indexes, ranks):
    assert Labels(Network(), count=lambda: 3).of(names) == (indexes, ranks)


@pytest.mark.parametrize(
    "write",
    [
        lambda table, folder: table,
        lambda table, folder: json.dumps(table),
        lambda table, folder: "{tabby: cat, Lynx: hot_dog, no: 2, fox: null}",
        lambda table, folder: (
            (folder / "t.yaml").write_text("tabby: cat\nlynx: Hot Dog\nno: 2\nfox:\n") and folder / "t.yaml"
        ),
        lambda table, folder: (folder / "t.json").write_text(json.dumps(table)) and str(folder / "t.json"),
    ],
)
def test_a_table_gives_names(tmp_path, write):
    table = write({"tabby": "cat", "lynx": "hot dog", "no": 2, "fox": None}, tmp_path)
    labels = Labels(ANIMALS, table)
    assert labels.of(["fox", "lynx", "no", "tabby", "tv"]).indexes == (None, 1, 2, 0, 2)


def test_a_table_gives_the_numbers_of_a_network_without_names():
    assert Labels(Network(), {"1": 0, "10": 2}, lambda: 3).of(["1", "10", "2"]).indexes == (0, 2, None)


@pytest.mark.parametrize(
    "table, words",
    [
        ({"tabbby": "cat"}, "'tabbby' is no class of the data; did you mean tabby?"),
        ({"tabby": "cta"}, "the network network has no class 'cta'; did you mean cat?"),
        ({"tabby": "7"}, "has no class '7'"),
        ({"tabby": -1}, "has no class '-1'"),
        ({"tabby": ["cat"]}, "task.classes must be a table of names"),
        ("{tabby: cat", "task.classes is not YAML"),
        ("{}x", "task.classes is not YAML"),
        ("nowhere.yaml", "cannot read nowhere.yaml: No such file"),
        (__file__, "is not YAML|must be a table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(table, words):
    with pytest.raises(LoraCompError, match=words) as error:
        Labels(ANIMALS, table).of(["tabby", "lynx"])
    assert "\n" not in str(error.value)


def test_no_table_is_an_empty_one():
    assert read_table(None) == read_table({}) == {}


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/shufflenet_v2_x0_5"])
def test_library_classifiers_know_imagenets_classes(name):
    network = load_network(name, None)
    assert (len(network.classes), network.classes[207]) == (1000, "golden retriever")
    task = load_task("cls", network=name, weights=None)
    image = torch.rand(3, 64, 64)
    answer = int(network(image[None]).argmax())
    wnid = imagenet_names(1000)[answer][-1]
    other = imagenet_names(1000)[(answer + 1) % 1000][-1]
    for label, right in ((0, 1.0), (1, 0.0)):
        measured = task.measure(
            image, Sample("a", image, label, classes=sorted([wnid, other], key=lambda w: w != wnid))
        )
        assert measured["score"] == measured["top1"] == right


def test_ranks_are_noted():
    task, names = load_task("cls", network="timm/resnet10t", weights=None), [f"c{i:04d}" for i in range(1000)]
    sample = Sample("a", torch.rand(3, 64, 64), 7, classes=names)
    assert "agreement" in task.notes("set", sample)[0]
    task.labels = Labels(Network(), count=task._count)  # as of a checkpoint that somebody trained
    [note] = task.notes("set", sample)
    assert "does not name its classes: those of set, as many, are taken in their order" in note
    assert "top1" in task.measure(sample.image, sample) and task.labels.relabelled(names) is None


def folder(root, *names):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        write_image(root / name / "x.png", load_data("scenes", limit=i + 1)[i].image)
    return load_data("folder", root)


def run(task, data, codec, out):
    with Progress(disable=True) as progress:
        return evaluate(data, [Point(codec, [None])], task, FitSettings(0, 0.01), out, progress)


@pytest.mark.parametrize(
    "names, table, score, top1",
    [
        (["arrow", "gear"], None, "top1", 2),
        (["arrow", "Gear", "zzz"], None, "agreement", 2),
        (["arrow", "zzz"], "{zzz: star}", "top1", 2),
        (["cat", "dog"], None, "agreement", 0),
    ],
)
def test_a_run_calls_its_score_what_it_is(tmp_path, codec, capsys, names, table, score, top1):
    records = run(load_task("cls", classes=table), folder(tmp_path / "set", *names), codec, tmp_path / "out")
    assert all(record["score"] == record[score] for record in records.requested)
    assert sum("top1" in record for record in records.requested) == top1
    notes = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert capsys.readouterr().err == "".join(f"note: {note}\n" for note in notes)
    assert len(notes) == (score == "agreement")
    if notes:
        missing = [name for name in names if name in ("zzz", "cat", "dog")]
        assert f"has no class for {', '.join(missing)} of set: the score is agreement" in notes[0]


def test_another_table_is_scored_again_and_the_same_one_is_not(tmp_path, codec):
    data = folder(tmp_path / "set", "arrow", "zzz")
    keys = [
        record_key(data[1], codec, load_task("cls", classes=table), None, FitSettings(0, 0.01))
        for table in (None, "{zzz: star}", "{zzz: gear}", {"zzz": "star"})
    ]
    assert len(set(keys)) == 3 and keys[1] == keys[3]


def test_scenes_and_their_networks_need_no_table(codec):
    """Records of earlier runs keep their keys."""
    scene = load_data("scenes", limit=1)[0]
    for name in ("cls", "det"):
        task = load_task(name)
        key = record_key(scene, codec, task, None, FitSettings(0, 0.01))
        assert "classes" not in json.loads(key) and task.notes("scenes", scene) == []


def test_several_tasks_note_each_what_concerns_it(tmp_path, codec):
    task = load_task("both", parts={"cls": {}, "det": {}, "human": {}})
    sample = folder(tmp_path / "set", "cat")[0]
    [note] = task.notes("set", sample)
    assert note.startswith("cls: the network scenes has no class for cat of set")
    assert "classes" in json.loads(record_key(sample, codec, task, None, FitSettings(0, 0.01)))


def test_data_of_ones_own_is_matched_by_its_classes(tmp_path, codec):
    scene = load_data("scenes", limit=1)[0]

    class Own(list):
        name, classes = "own", ["zebra", lc.data.load_data("scenes").classes[scene.label]]

    records = run(load_task("cls"), Own([Sample("a", scene.image, label=1)]), codec, tmp_path)
    assert records.requested[0]["top1"] == records.requested[0]["agreement"]
    assert "zebra" in records.notes[0]


@pytest.mark.data
@pytest.mark.parametrize("name", ["base", "subset", "nosize", "stringids", "strbox"])
def test_one_data_set_has_one_score_however_its_file_is_written(shared, codec, tmp_path, name):
    """The subset lacks four categories that no object has."""
    data = load_data("coco", shared / "cases" / "coco" / name)
    task = load_task("det")
    shown = [task.measure(data[i].image, data[i])["objects"] for i in range(3)]
    scenes = load_data("scenes", limit=3, size=256)
    expected = [task.measure(scenes[i].image, scenes[i])["objects"] for i in range(3)]
    assert task.pool(shown)["mAP"] == pytest.approx(task.pool(expected)["mAP"]) and task.pool(shown)["mAP"] > 0.7


@pytest.mark.data
@pytest.mark.parametrize("name, number", [("emptybbox", 1), ("nanbox", 1), ("unknowncat", 1), ("orphans", 1)])
def test_a_case_that_cannot_be_scored_is_named(shared, name, number):
    with pytest.raises(LoraCompError, match=rf"annotation {number} has"):
        load_data("coco", shared / "cases" / "coco" / name)
