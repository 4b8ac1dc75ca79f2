from d2kd.metrics import parse_line, read_metrics

LINES = '{"iteration": 0, "loss": 1.5}\n{"iteration": 1, "lo\n\n[1]\n{"bbox/AP": NaN}\n'


def test_whole_lines_are_read(tmp_path):
    (tmp_path / "metrics.json").write_text(LINES)
    first, last = read_metrics(tmp_path)
    assert first == {"iteration": 0, "loss": 1.5}
    assert list(last) == ["bbox/AP"] and last["bbox/AP"] != last["bbox/AP"]


def test_bytes_of_a_damaged_file_are_passed_over(tmp_path):
    (tmp_path / "metrics.json").write_bytes(b'\xff\xfe{\n{"a": 1}\n')
    assert read_metrics(tmp_path) == [{"a": 1}]


def test_without_a_file_there_is_nothing(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_part_of_a_line_is_nothing():
    assert parse_line('{"a": ') == parse_line("3") == {}
