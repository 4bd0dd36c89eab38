"""What a release promises: versions that agree, a whole wheel, units and examples that are true."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import aliasmilter
from aliasmilter import config

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "alias-milter.service"
EXAMPLE = ROOT / "docs" / "alias-milter.toml"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def run_in(folder: Path, *command: str) -> None:
    """Run Python with arguments in a folder; its output is the failure's text."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from the sdist, so that it shows that both are whole. Needs no network."""
    folder = tmp_path_factory.mktemp("build")
    # A copy: setuptools writes build/ and *.egg-info beside what it builds.
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "milter", folder / "milter", ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    run_in(folder, "-c", "from setuptools import build_meta; build_meta.build_sdist('.')")
    [sdist] = folder.glob("*.tar.gz")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run_in(folder, "-m", "pip", "wheel", *options, "--wheel-dir", "wheels", str(sdist))
    [path] = (folder / "wheels").iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    [path] = [each for each in wheel.namelist() if each.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(dist_info(wheel, "METADATA"))


def test_version_is_the_newest_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## .*?(\d+\.\d+\S*?)\]?(\s|$)", text, re.MULTILINE)
    assert newest is not None
    assert newest[1] == aliasmilter.__version__


def test_wheel_holds_every_module_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "milter"
    modules = {str(path.relative_to(source)) for path in source.glob("aliasmilter/**/*.py")}
    assert modules <= set(wheel.namelist())
    assert "aliasmilter/py.typed" in wheel.namelist()


def test_wheel_installs_nothing_over_pymilter(wheel: zipfile.ZipFile) -> None:
    # pymilter's packages are Milter and milter; on a Mac even the case is the same.
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"aliasmilter"}


def test_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    commands = configparser.ConfigParser()
    commands.read_string(dist_info(wheel, "entry_points.txt"))
    assert dict(commands["console_scripts"]) == {"alias-milter": "aliasmilter.cli:main"}


def test_wheel_tells_version_license_and_python(wheel: zipfile.ZipFile) -> None:
    told = metadata(wheel)
    assert told["Name"] == "alias-milter"
    assert told["Version"] == aliasmilter.__version__
    assert told["Requires-Python"] == ">=3.11"
    assert "GPL-2.0-or-later" in (told["License"], told["License-Expression"])
    assert str(told.get_payload()).strip(), "the README is the long description"


def test_wheel_carries_the_license_text(wheel: zipfile.ZipFile) -> None:
    [name] = [each for each in wheel.namelist() if each.endswith("LICENSE")]
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_license_is_the_full_gpl_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.match(r"\s*GNU GENERAL PUBLIC LICENSE\s+Version 2, June 1991", text)
    assert "END OF TERMS AND CONDITIONS" in text


def test_classifiers_start_at_the_required_python(setup_cfg: configparser.ConfigParser) -> None:
    classifiers = setup_cfg["metadata"]["classifiers"].strip().splitlines()
    prefix = "Programming Language :: Python :: 3."
    minors = [int(each.removeprefix(prefix)) for each in classifiers if each.startswith(prefix)]
    assert setup_cfg["options"]["python_requires"] == f">=3.{min(minors)}"
    assert minors == list(range(min(minors), max(minors) + 1))


def test_no_classifier_contradicts_the_license(setup_cfg: configparser.ConfigParser) -> None:
    # An SPDX expression and a license classifier together are an error to newer setuptools.
    assert setup_cfg["metadata"]["license"] == "GPL-2.0-or-later"
    assert "License ::" not in setup_cfg["metadata"]["classifiers"]


def settings(path: Path) -> list[tuple[str, str]]:
    """Key and value of each line of a systemd unit."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in pairs]


def first_words(path: Path) -> list[list[str]]:
    """The words of each line that is no comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_unit_runs_as_the_user_that_sysusers_makes() -> None:
    [[kind, user, *_]] = first_words(UNIT.with_suffix(".sysusers"))
    assert kind == "u"
    assert {("User", user), ("Group", user)} <= set(settings(UNIT))


def test_unit_may_write_the_folder_that_tmpfiles_makes() -> None:
    [[kind, folder, mode, user, group]] = first_words(UNIT.with_suffix(".tmpfiles"))
    assert (kind, mode, user) == ("d", "0750", "alias-milter")
    unit = settings(UNIT)
    assert ("ReadWritePaths", f"-{folder}") in unit
    assert ("SupplementaryGroups", group) in unit


def test_unit_starts_the_daemon_and_does_not_retry_a_broken_configuration() -> None:
    unit = dict(settings(UNIT))
    command, *arguments = unit["ExecStart"].split()
    assert Path(command).name == "alias-milter"
    assert arguments == ["run", "-c", "/etc/alias-milter/alias-milter.toml"]
    assert unit["Type"] == "notify"
    assert unit["RestartPreventExitStatus"] == "2"


def test_the_mail_server_itself_starts_after_the_unit() -> None:
    """Debian has instances: its postfix.service runs /bin/true, after them."""
    before = dict(settings(UNIT))["Before"].split()
    assert {"postfix.service", "sendmail.service"} <= set(before)
    for instance in Path("/lib/systemd/system").glob("postfix@.service"):
        unit = dict(settings(instance))
        assert "postfix.service" in unit["Before"].split()
        assert "postfix@-.service" in before


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    # The command is not installed here: any command that is there takes its place.
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def run(*command: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_unit_gives_an_intruder_little() -> None:
    # In tenths: systemd-analyze calls up to 1.9 "OK", an ordinary service has 9.
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=15", str(UNIT))
    exposure = re.search(r"Overall exposure level.*: ([0-9.]+)", done)
    assert exposure
    # Each version of systemd weighs in its own way; that of Debian 12 is the one that is told.
    if run("systemd-analyze", "--version").startswith("systemd 252"):
        told = f"an exposure of {exposure[1]} (`systemd-analyze security`)"
        assert told in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_unit_feeds_the_watchdog_that_the_daemon_knows() -> None:
    unit = dict(settings(UNIT))
    assert int(unit["WatchdogSec"]) >= 10
    assert unit["NotifyAccess"] == "main"


@pytest.mark.skipif(os.getuid() != 0, reason="makes users and gives folders to them: needs root")
def test_sysusers_and_tmpfiles_make_the_user_and_the_folder_that_postfix_reaches(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\npostfix:x:123:\n")
    run("systemd-sysusers", f"--root={tmp_path}", str(UNIT.with_suffix(".sysusers")))
    made = (tmp_path / "etc/passwd").read_text().splitlines()[-1].split(":")
    name, _, uid, _, _, home, shell = made
    assert name == "alias-milter"
    assert 0 < int(uid) < 1000
    assert (home, Path(shell).name) == ("/", "nologin")
    (tmp_path / "var/spool/postfix").mkdir(parents=True)
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(UNIT.with_suffix(".tmpfiles")))
    status = (tmp_path / "var/spool/postfix/alias-milter").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (int(uid), 123, 0o750)


def uncommented(text: str) -> str:
    """The example with every key and section in force: "#key = ..." is a key, "# Text" is not."""
    return re.sub(r"^#(?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)


def defaults_spelt_out(text: str) -> str:
    """The example with its default values in force, but no example values."""
    parts = re.split(r"^(?=#?\[)", text, flags=re.MULTILINE)
    in_force = [part for part in parts if part.startswith("[")]
    kept = [re.sub(r"^#.*# example$", "", part, flags=re.MULTILINE) for part in in_force]
    return uncommented("".join(kept))


def load_text(folder: Path, text: str) -> config.Config:
    path = folder / EXAMPLE.name
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def section_keys(annotation: object) -> set[str]:
    """The keys of a section, given the type of its field in Config."""
    for each in get_args(annotation) or (annotation,):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return set(each.model_fields)
    raise TypeError(annotation)


def test_example_configuration_is_accepted_as_it_stands() -> None:
    assert config.load(EXAMPLE).srs.domain == "fwd.example.net"


def test_the_documents_that_the_example_configuration_names_are_there() -> None:
    named = set(re.findall(r"\bdocs/[a-z/.-]+\.md", EXAMPLE.read_text(encoding="utf-8")))
    assert named
    assert [each for each in named if not (EXAMPLE.parents[1] / each).is_file()] == []


def test_example_configuration_has_every_key_and_no_other() -> None:
    example = tomllib.loads(uncommented(EXAMPLE.read_text(encoding="utf-8")))
    known = {name: section_keys(f.annotation) for name, f in config.Config.model_fields.items()}
    assert {name: set(section) for name, section in example.items()} == known


def test_example_configuration_is_accepted_with_every_key_in_force(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, uncommented(EXAMPLE.read_text(encoding="utf-8")))
    assert loaded.arc.enabled


def test_example_configuration_tells_the_true_defaults(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    spelt_out = defaults_spelt_out(text)
    assert spelt_out.count(" = ") > 15
    assert load_text(tmp_path, spelt_out) == load_text(tmp_path, text)
