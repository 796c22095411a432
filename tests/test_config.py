"""Words to settings: each value in its type, paths as they stand, and one line for what does not fit."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lora_comp import codecs, data, engine, methods, tasks
from lora_comp.cli import COMMANDS
from lora_comp.commands.encode import EncodeConfig
from lora_comp.commands.report import CodecsConfig, RatesConfig
from lora_comp.commands.run import RunConfig
from lora_comp.commands.train import TrainConfig
from lora_comp.commands.zoo import ZooConfig
from lora_comp.config import compose, leaves, suggestion
from lora_comp.errors import LoraCompError
from lora_comp.methods.svd_lora import LowRankOptions
from lora_comp.settings import Choice, Setting, argument, check, setting

PATHS = [
    "a=b",
    "a(b",
    "[a",
    "a#b",
    "it's",
    "~a",
    "a b",
    "größe",
    "a,b",
    "1",
    "true",
    "{a}",
    "$a",
    "=",
    "a]",
    "*",
    "\\",
    '"',
]


def run(*words: str) -> RunConfig:
    return compose(RunConfig, words, "run")


def encode(*words: str) -> EncodeConfig:
    return compose(EncodeConfig, words, "encode")


def refused(compose, *words: str) -> str:
    with pytest.raises(LoraCompError) as error:
        compose(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_stands(path):
    config = run("data=folder", f"data.path={path}", f"out={path}", f"roi={path}", f"codec.weights={path}")
    assert (config.data.options.path, config.out, config.roi, config.codec.options.weights) == (path,) * 4
    assert run("task=open", f"task.network={path}").task.options.network == [path]
    assert compose(TrainConfig, [f"images={path}"], "train").images == [path]
    assert encode(f"./{path}", f"./{path}.lcz").image == f"./{path}"
    assert encode("--", path, path).file == path


def test_quotes_around_a_path_and_null():
    assert run("out='a b'").out == run('out="a b"').out == "a b"
    assert run("method.adapter=null").method.options.adapter is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[a,b]", ["a", "b"]),
        ("[a=b, c d]", ["a=b", "c d"]),
        ("['a,b',\"c\"]", ["a,b", "c"]),
        ("[[x],it's]", ["[x]", "it's"]),
        ("[]", []),
        ("[/a]", ["/a"]),
    ],
)
def test_a_list_of_paths(text, expected):
    assert compose(TrainConfig, [f"images={text}"], "train").images == expected


def test_values_have_the_types_of_their_fields():
    config = run("quality=2", "engine.lr=1e-3", "data.limit=null", "method.mlp=true", "data.size=[64,96]")
    assert (config.quality, config.engine.options.lr, config.data.options.limit, config.method.options.mlp) == (
        [2],
        1e-3,
        None,
        True,
    )
    assert config.data.options.size == [64, 96]
    assert run("quality=[2,4]").quality == [2, 4]
    assert compose(TrainConfig, ["minutes=4"], "train").minutes == 4


def test_a_choice_brings_its_settings_wherever_it_stands():
    assert run("engine.steps=7", "engine=published").engine.options == replace(engine.choices()["published"], steps=7)
    assert run("method=lora").method == Choice("lora", LowRankOptions(exponent=8))
    assert run("method=none").method.given() == {"name": "none"}
    assert run("task=cls", "task=human").task.name == "human"


def test_several_tasks_are_parts_of_one():
    config = run("task=[cls,det]", "task.det.network=a=b", "task.shares=[3,1]")
    cls = {"name": "cls", "network": "scenes", "weights": "default", "classes": None}
    det = {"name": "det", "network": "a=b", "weights": "default", "classes": None}
    assert config.task.given() == {"name": "cls+det", "parts": {"cls": cls, "det": det}, "shares": [3, 1]}
    assert "codec is one of tic, tic-v, stf, stf-s, not a list" in refused(run, "codec=[tic,tic-v]")
    assert "task.shares must be a number >= 0, a list of these as [A,B] or null, not [-1]" in refused(
        run, "task=[cls]", "task.shares=[-1]"
    )


def test_settings_below_a_setting_or_a_file_in_their_place():
    assert run("task=open", "task.network=a", "task.input=b=c.yaml").task.options.input == "b=c.yaml"
    assert run("task=open", "task.network=[a,b]", "task.input=[c,d]").task.options.input == ["c", "d"]
    assert run("task=open", "task.network=a", "task.layers=[0,3]").task.options.layers == ["0", "3"]
    for words in (["task.input.size=[64,96]"], ["task.input={size:[64,96]}"]):
        assert run("task=open", "task.network=a", *words).task.options.input == tasks.open.InputOptions(size=[64, 96])
    assert "no setting 'task.input.sizes'; did you mean" in refused(run, "task=open", "task.input={sizes:3}")
    assert "task.input.channels must be rgb, bgr or null" in refused(
        run, "task=open", "task.network=a", "task.input.channels=rbg"
    )


def test_what_stands_in_the_wrong_place_is_told_its_own():
    assert "; a list is written task=[cls,det]" in refused(run, "task=cls,det")
    folder = refused(run, "data=photos/mine")
    assert "; a path is given with data.path=photos/mine to folder, imagenet, coco, voc or cityscapes" in folder
    assert "; a path is given with task.network=net.onnx to open" in refused(run, "task=net.onnx")
    assert "data=scenes has no setting 'data.path'; data=folder, imagenet" in refused(run, "data.path=photos")
    assert "method=none has no setting 'method.rank'; method=svd_lora, lora, alice or calice has it" in refused(
        run, "method=none", "method.rank=2"
    )


def test_what_must_be_given():
    assert "data.path must be given: folder with images" in refused(run, "data=folder")
    assert "task.network must be given" in refused(run, "task=open")
    assert "task.name must be given: MODULE:CLASS" in refused(run, "task=own")
    assert "encode needs FILE" in refused(encode, "cat.png")
    assert "report rates needs RESULTS" in refused(lambda: compose(RatesConfig, [], "report rates"))


@pytest.mark.parametrize("word", ["task=.\n", "task=a\rb/c", "quality=\n", "a\nb=1", "a\u2028b=1", "\x1b[31m=1"])
def test_control_characters_are_escaped_in_messages(word):
    message = refused(lambda: compose(RunConfig, [word], "run"))
    assert message.isprintable()


def test_options_are_settings():
    words = ["a", "--codec", "tic-v", "--out=b=c", "card=d"]
    assert compose(CodecsConfig, words, "report codecs") == CodecsConfig("a", "tic-v", "b=c", "d")
    assert compose(ZooConfig, ["--write"], "zoo").write and not compose(ZooConfig, [], "zoo").write
    assert compose(RatesConfig, ["a", "b"], "report rates").results == ["a", "b"]
    assert "no setting 'carb'; did you mean card?" in refused(
        lambda: compose(CodecsConfig, ["a", "--carb", "b"], "report codecs")
    )


def test_settings_stand_before_and_after_the_paths():
    config = encode("quality=3", "cat.png", "task=human", "cat.lcz")
    assert (config.image, config.file, config.quality) == ("cat.png", "cat.lcz", 3)
    assert encode("x=1.png", "y.lcz").image == "x=1.png"  # near no setting
    assert "no setting 'qualty'; did you mean quality?" in refused(encode, "cat.png", "qualty=3")


def test_interpolations():
    assert run("out=runs/${method.name}/${data.name}").out == "runs/svd_lora/scenes"
    assert run("engine.batch=${engine.steps}", "engine.steps=3").engine.options.batch == 3
    assert "nowhere" in refused(run, "out=${nowhere}")
    assert "engine.batch must be" in refused(run, "engine.batch=${task.name}")


@pytest.mark.parametrize(
    "word, near",
    [("engine.step", "engine.steps"), ("steps", "engine.steps"), ("networks", "task.network"), ("zzz", None)],
)
def test_near_names(word, near):
    found = suggestion(word, leaves(run()))
    assert f"did you mean {near}" in found if near else found == ""


@pytest.mark.parametrize(
    "value, hint, about, message",
    [
        (256, int, Setting(low=1, high=255), "x must be an integer from 1 to 255, not 256"),
        (True, int, Setting(), "x must be an integer, not true"),
        (1.5, int | None, Setting(), "x must be an integer or null, not 1.5"),
        (float("nan"), float, Setting(), "x must be a number, not nan"),
        (0, float, Setting(above=0), "x must be a number > 0, not 0"),
        (-1, int, Setting(low=0, high=2**63 - 1), "x must be an integer from 0 to 2^63 - 1, not -1"),
        (7, bool, Setting(), "x must be true or false, not 7"),
        ("c", str | None, Setting(choices=("a", "b")), "x must be a, b or null, not 'c'"),
        (["a", 1], list[int], Setting(low=0), "x must be an integer >= 0 or a list of these as [A,B], not ['a', 1]"),
        ([], list[int], Setting(filled=True), "x must be an integer or a list of these as [A,B], not []"),
        (None, str, Setting(path=True), "x must be a path, not null"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(value, hint, about, message):
    with pytest.raises(LoraCompError) as error:
        check("x", value, hint, about)
    assert str(error.value) == message


def test_a_choice_is_one_entry_of_a_registry(monkeypatch):
    """Nothing else is edited for another codec, task or data set, with settings of its own or without."""

    @dataclass(frozen=True)
    class ToyOptions:
        colour: str = setting("red", "of the toy", choices=("red", "blue"))

    class Toy:
        options = ToyOptions

    monkeypatch.setitem(tasks.TASKS, "toy", Toy)
    monkeypatch.setitem(tasks.TASKS, "bare", object)
    monkeypatch.setitem(data.DATASETS, "toy", Toy)
    monkeypatch.setitem(codecs.CODECS, "toy", Toy)
    monkeypatch.setitem(methods.METHODS, "toy", Toy)
    config = run("task=toy", "data=toy", "codec=toy", "method=toy", "task.colour=blue")
    assert config.task == Choice("toy", ToyOptions("blue"))
    assert config.data == config.method == Choice("toy", ToyOptions()) and config.codec.name == "toy"
    assert run("task=[toy,bare]").task.given()["parts"]["bare"] == {"name": "bare"}
    assert "task.colour must be red or blue" in refused(run, "task=toy", "task.colour=green")


def test_every_default_fits_and_every_dataclass_is_a_structured_config():
    found = [o for module in (codecs, data, engine, methods, tasks) for o in module.choices().values()]
    for options in [*found, tasks.multi.MultiTaskOptions({})]:
        OmegaConf.structured(options)
        made = options() if isinstance(options, type) else options
        for name, (value, hint, about) in leaves(made).items():
            assert about.help, f"{type(made).__name__}.{name} has no help"
            if value != "???":
                check(name, value, hint, about)


def test_a_group_has_no_default_that_is_no_choice():
    @dataclass(frozen=True)
    class Wrong:
        path: str = argument("a file")
        codec: Any = dataclasses.field(default="mp3", metadata={"setting": Setting(group="lora_comp.codecs")})

    assert "codec must be stf, stf-s, tic or tic-v, not 'mp3'" in refused(lambda: compose(Wrong, ["a"], "play"))
    assert all(name == name.lower() for name in COMMANDS)


pieces = st.sampled_from(
    ["task", "engine", "steps", "roi", "quality", "images", "input", "det", "open", "null", "true", "1"]
)
signs = st.sampled_from(list("=.[]{},:${}()'\"~+-@#\\ \n")) | st.sampled_from(
    ["--", "${task.name}", "${", "=[", "task="]
)
some_words = st.lists(st.lists(pieces | signs, max_size=6).map("".join) | st.text(max_size=8), max_size=4)


@settings(max_examples=300, deadline=None)
@given(some_words)
def test_any_words_are_settings_or_one_line(words):
    for schema in (RunConfig, EncodeConfig, TrainConfig, RatesConfig):
        try:
            assert isinstance(compose(schema, words, "command"), schema)
        except LoraCompError as error:
            assert str(error) and "\n" not in str(error)
