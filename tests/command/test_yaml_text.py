"""libyaml reads every config as MONAI's own reader does, and refuses what that only warns of."""

from __future__ import annotations

import pytest
import yaml
from monai.bundle import ConfigParser

from scripts.command import config_files, yaml_text
from scripts.command.locations import CONFIGS


def test_every_config_reads_as_monai_reads_it():
    paths = sorted(CONFIGS.rglob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        expected = ConfigParser.load_config_file(path)
        assert yaml_text.load(path.read_text(encoding="utf-8")) == expected, path
        assert config_files.read_mapping(path) == expected, path


def test_files_are_merged_as_monai_merges_them(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("a: {b: 1, c: [1]}\nd: [1, 2]\n", encoding="utf-8")
    second.write_text('a#b: 3\n"+d": [4]\ne: "@a#c"\n', encoding="utf-8")
    expected = ConfigParser()
    expected.read_config([str(first), str(second)])
    assert config_files.read_config([first, second]).get() == expected.get()
    assert config_files.read_config([first, second]).get("d") == [1, 2, 4]


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "b: {a: 1, a: 1}\n"])
def test_a_key_that_stands_twice_is_refused_where_asked(text):
    with pytest.raises(yaml.YAMLError, match="Duplicate key: `a`"):
        yaml_text.load(text, unique_keys=True)
    assert yaml_text.load(text) == yaml.safe_load(text)
