"""Options: flags from dataclass fields and back, flagfiles, help, errors of lists."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from absl import flags

from tf_detectorgan import config, reproduce
from tf_detectorgan.config import option
from tf_detectorgan.errors import InputError
from tf_detectorgan.prepare import Prepare
from tf_detectorgan.training.settings import ARMS, Train


@dataclasses.dataclass(frozen=True)
class Options:
    name: str = option("a", "Text.")
    mode: str = option("fast", "One of two.", ("fast", "slow"))
    count: int = option(3, "Whole.", low=1, high=10)
    rate: float = option(0.5, "Fraction.", low=0.0)
    on: bool = option(True, "Yes or no.")
    sizes: tuple[float, ...] = option((), "Numbers.")
    kinds: tuple[str, ...] = option(("x",), "Some of three.", choices=("x", "y", "z"))
    runs: tuple[str, ...] = option((), "Each.", repeated=True)


@pytest.fixture
def parse():
    """parse(cls, "--a=1", ...): what the command line makes of it, with flags of its own."""

    def parse(cls, *arguments):
        values = flags.FlagValues()
        config.define_flags(cls, values)
        values(["command", *config.files_first(arguments)])
        return config.read_flags(cls, values)

    return parse


def test_words_are_read_as_the_command_would(tmp_path):
    (tmp_path / "a.flags").write_text("--count=5\n--mode=slow\n")
    assert config.parse(Options, [f"--flagfile={tmp_path / 'a.flags'}", "--count=7"]) == Options(
        count=7, mode="slow"
    )
    with pytest.raises(InputError, match="Unknown command line flag 'colour'"):
        config.parse(Options, ["--colour=red"])


def test_defaults_are_the_fields(parse):
    assert parse(Options) == Options()
    assert parse(Train) == Train()


def test_values_of_every_kind(parse):
    given = ("--name=b", "--mode=slow", "--count=7", "--rate=1e-3", "--noon", "--sizes=1,2.5", "--kinds=z, y")
    given += ("--runs=a,b", "--runs=c")
    expected = Options("b", "slow", 7, 1e-3, False, (1.0, 2.5), ("z", "y"), ("a,b", "c"))
    assert parse(Options, *given) == expected


@pytest.mark.parametrize(
    "flag,message",
    [
        ("--count=0", "count"),
        ("--count=11", "count"),
        ("--count=x", "count"),
        ("--rate=-1", "rate"),
        ("--mode=medium", "mode"),
        ("--unknown=1", "unknown"),
    ],
)
def test_bad_values_name_the_flag(parse, flag, message):
    with pytest.raises(flags.Error, match=message):
        parse(Options, flag)


@pytest.mark.parametrize(
    "flag,message",
    [
        ("--sizes=1,two", "--sizes=1,two: every item must be float"),
        ("--kinds=x,w", "--kinds: 'w' is none of x, y, z"),
    ],
)
def test_bad_items_name_flag_and_item(parse, flag, message):
    with pytest.raises(InputError, match=message):
        parse(Options, flag)


def test_a_detector_that_could_not_move_is_refused(parse):
    """Clipping to norm 0 is not "no clipping": every gradient would be 0."""
    with pytest.raises(flags.Error, match="clipnorm"):
        parse(Train, "--clipnorm=0")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--crossfit_folds=1"], "2 or more, or 0"),
        (["--residual_scale=0.5"], "--residual_scale=0.5: give two factors"),
        (["--residual_scale=0.5,0.2"], "the lower first"),
        (["--residual_scale=0,1.5"], "from 0 to 1"),
        (
            ["--output=full_image", "--synthetic_objects=3"],
            "--synthetic_objects=3: with --output=full_image .* only one object",
        ),
        (["--residual_scale=0,half"], "every item must be float"),
    ],
)
def test_invalid_option_values_are_refused_with_a_message(parse, flags, message):
    with pytest.raises(InputError, match=message):
        parse(Train, *flags)


def test_an_empty_list_is_empty(parse):
    assert parse(Options, "--kinds=", "--sizes=").kinds == ()


PAPER = {
    "output": "full_image",
    "object_source": "crop",
    "generator_input": "mask",
    "gan_loss": "log",
    "lambda_syn": 1.0,
    "syn_cap": 0.0,
    "match_candidates": 1,
    "flip_objects": False,
    "keep_edges": False,
}


def test_the_papers_flagfile_changes_what_the_paper_says_and_nothing_else(parse):
    """Given after another flagfile; what the command line says wins wherever it stands."""
    own, paper = (f"--flagfile={CONFIGS[0].parent / name}.flags" for name in ("demo", "paper"))
    assert parse(Train, own, paper) == dataclasses.replace(parse(Train, own), **PAPER)
    found = parse(Train, "--lambda_syn=0.05", paper)
    assert (found.lambda_syn, found.output) == (0.05, "full_image")


@dataclasses.dataclass(frozen=True)
class Described:
    BASIC = ("seed",)

    out: str = config.option("runs", "Where to write.", heading="Run")
    seed: int = config.option(3, "Random numbers follow from it.")
    sizes: tuple[float, ...] = config.option((1.0, 2.5), "Sides.", heading="Data")
    mode: str = config.option("one", "How: one or two.", ("one", "two"))
    quick: bool = config.option(True, "Takes less time.")


def test_help_has_the_basic_flags_first_and_the_others_by_heading():
    assert config.help_text(Described).splitlines() == [
        "Basic",
        "  --seed=3",
        "      Random numbers follow from it.",
        "",
        "Run",
        "  --out=runs",
        "      Where to write.",
        "",
        "Data",
        "  --sizes=1.0,2.5",
        "      Sides.",
        "  --mode=one",
        "      How: one or two.",
        "  --quick=true",
        "      Takes less time.",
    ]
    assert config.help_text(Prepare).startswith("Flags\n  --dataset=")


def test_flags_of_train_have_headings_and_are_few():
    text = config.help_text(Train)
    flags = re.findall(r"^  --(\w+)", text, re.MULTILINE)
    assert len(flags) == len(set(flags)) <= 55
    assert flags[:15] == list(Train.BASIC)
    assert [line for line in text.splitlines() if line[:1] not in ("", " ")] == [
        "Basic", "Run", "Data", "Networks", "GAN losses", "Detector loop (Eqn 3)", "Detector", "Insertion",
        "Schedule", "Synthetic set", "Logging",
    ]  # fmt: skip


def test_flagfiles_include_others_of_their_own_folder(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "inner.flags").write_text("// another comment\n--seed=7\n--gan_batch=2\n")
    outer = tmp_path / "outer.flags"
    outer.write_text("# a comment\n\n--seed=1\n--flagfile=deep/inner.flags\n--gan_batch=3\n")
    assert config.flagfile_lines(outer) == ["--seed=1", "--seed=7", "--gan_batch=2", "--gan_batch=3"]
    monkeypatch.chdir(tmp_path / "deep")
    found = config.parse(Train, ["--arm=acgan", "--flagfile", str(outer)])
    assert (found.seed, found.gan_batch, found.arm) == (7, 3, ("acgan",))
    outer.write_text("--flagfile=outer.flags\n")
    with pytest.raises(InputError, match="outer.flags: includes itself"):
        config.flagfile_lines(outer)
    with pytest.raises(InputError, match="--flagfile=absent.flags: cannot be read"):
        config.parse(Train, ["--flagfile=absent.flags"])


def test_a_flagfile_is_read(parse, tmp_path):
    file = tmp_path / "some.flags"
    file.write_text("# a comment\n--seed=7\n--arm=real_only,acgan\n")
    found = parse(Train, f"--flagfile={file}")
    assert (found.seed, found.arm) == (7, ("real_only", "acgan"))


CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.flags"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_our_flagfiles_are_read_and_say_by_which_command(parse, file):
    options = Prepare if file.stem.endswith("_prepare") else Train
    text = file.read_text("utf-8")
    assert parse(options, f"--flagfile={file}") != parse(options)
    if file.stem == "small_networks":  # included by others
        return
    commands = {"prepare"} if options is Prepare else {"train", "reproduce"}
    found = re.findall(rf"-m tf_detectorgan\.(\w+) .*configs/{file.name}", text)
    assert found
    assert set(found) <= commands


def test_json_and_back():
    options = Options("ü", kinds=("x", "z"), sizes=(1.5,))
    text = config.to_json(options)
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert config.from_json(Options, text, "here") == options


def test_json_with_an_unknown_field_is_refused_by_name():
    values = json.loads(config.to_json(Options())) | {"new": 1}
    with pytest.raises(
        InputError,
        match="config.json: .* do not exist in this version: new",
    ):
        config.from_json(Options, json.dumps(values), "config.json")


def test_json_without_a_field_takes_its_default_or_what_runs_did_before_it():
    values = json.loads(config.to_json(Train()))
    for name in ("seed", "keep_edges", "residual_scale"):
        del values[name]
    found = config.from_json(Train, json.dumps(values), "")
    assert found == dataclasses.replace(Train(), keep_edges=False, residual_scale=(1.0, 1.0))


OLD_NAMES = {
    "exemplar": "image",
    "condition": "exemplar",
    "compose": "full",
    "strength": [0.25, 0.5],
    "exemplar_flip": False,
    "match_top_k": 2,
    "gan_steps": 3,
    "final_steps": 4,
    "audit_folds": 5,
    "main_iou": 0.5,
}
RENAMED = Train(
    object_source="crop",
    generator_input="mask_and_object",
    output="full_image",
    residual_scale=(0.25, 0.5),
    flip_objects=False,
    match_candidates=2,
    pretrain_gan_steps=3,
    final_detector_steps=4,
    crossfit_folds=5,
    primary_iou=0.5,
)


def test_json_with_old_names_reads_as_the_present_ones():
    values = json.loads(config.to_json(RENAMED))
    for name in OLD_NAMES:
        del values[Train.RENAMED[name].name]
    assert config.from_json(Train, json.dumps(values | OLD_NAMES), "") == RENAMED


def test_old_flags_of_a_flagfile_and_a_command_line_read_as_the_present_ones(tmp_path):
    file = tmp_path / "old.flags"
    words = [
        f"--{name}={','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in OLD_NAMES.items()
    ]
    file.write_text("\n".join(words[:5]))
    assert config.parse(Train, [f"--flagfile={file}", *words[5:]]) == RENAMED
    assert not config.parse(Train, ["--noexemplar_flip"]).flip_objects
    assert config.parse(reproduce.Reproduce, ["--workers=3"]).processes == 3


def test_arms_are_the_papers_table():
    """Signs of lambda_real and lambda_syn: the paper maximises L_syn (+), AC-GAN minimises it (-)."""
    signs = {name: (arm.real_sign, arm.syn_sign) for name, arm in ARMS.items() if arm.detector}
    assert signs == {
        "acgan": (0, -1),
        "detectorgan_no_unroll": (0, 1),
        "detectorgan": (1, 1),
        "psgan_detectorgan": (1, 1),
    }
    alone = {"cyclegan_bbox", "pix2pix", "psgan"}
    assert {name for name, arm in ARMS.items() if arm.images == "generator"} == {*signs, *alone}


def test_to_flags_is_the_inverse_of_parse():
    for options in (
        Train(),
        Train(arm=("real_only", "detectorgan"), anchor_sizes=(1.5, 1e-7), augment=False, data_dir="a b"),
    ):
        assert config.parse(Train, config.to_flags(options)) == options
