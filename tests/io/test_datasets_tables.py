"""Tables: CSV and Parquet columns as features, and Parquet pictures."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hauberk import load_data
from hauberk.core.errors import DataError

TRAIN = "age,colour,sex,grade\n20,red,m,good\n30, blue,f,bad\n45.5,red,f,good\n"
TEST = "age,colour,sex,grade\n50,green,m,bad\n25,blue,m,good\n"


def written(folder, train=TRAIN, test=TEST):
    (folder / "train.csv").write_text(train, encoding="utf-8")
    (folder / "test.csv.gz").write_bytes(gzip.compress(test.encode()))
    return {"test": folder / "test.csv.gz", "train": folder / "train.csv"}


def test_words_become_one_feature_per_category_as_learnt_from_train(tmp_path):
    data = load_data(**written(tmp_path), groups=["sex"])
    assert data.feature_names == ["age", "colour=blue", "colour=red", "sex=f", "sex=m"]
    assert data.train.tensors()[0].tolist() == [[20, 0, 1, 0, 1], [30, 1, 0, 1, 0], [45.5, 0, 1, 1, 0]]
    # Green was never seen: none of the colours.
    assert data.test.tensors()[0].tolist() == [[50, 0, 0, 0, 1], [25, 1, 0, 0, 1]]
    assert data.class_names == ["bad", "good"] and data.train.y.tolist() == [1, 0, 1] and data.test.y.tolist() == [0, 1]
    assert data.train.groups["sex"].tolist() == [1, 0, 0] and data.test.groups["sex"].tolist() == [1, 1]
    assert (data.group_names, data.modality, data.name, data.classes) == ({"sex": ["f", "m"]}, "tabular", "test", 2)


def test_bounds_are_the_range_of_the_data_per_feature(tmp_path):
    data = load_data(**written(tmp_path))
    assert [end.tolist() for end in data.bounds] == [[20, 0, 0, 0, 0], [50, 1, 1, 1, 1]]
    for split in (data.train, data.test):
        x, _ = split.tensors()
        assert bool(((x >= data.bounds[0]) & (x <= data.bounds[1])).all())
    assert load_data(**written(tmp_path), bounds=[0, 99]).bounds == (0, 99)


def test_the_label_column_is_the_last_or_the_one_named(tmp_path):
    data = load_data(written(tmp_path)["train"], label="sex")
    assert data.class_names == ["f", "m"] and data.test.y.tolist() == [1, 0, 0] and "grade=bad" in data.feature_names
    with pytest.raises(DataError, match=r"no column 'grad'.*'grade'"):
        load_data(**written(tmp_path), label="grad")
    with pytest.raises(DataError, match="both the label and a group"):
        load_data(**written(tmp_path), groups=["grade"])


def test_numbers_as_labels_are_named_classes_and_decimals_are_amounts(tmp_path):
    data = load_data(written(tmp_path, "a,y\n1,10\n2,2\n3,10\n")["train"])
    assert data.class_names == ["2", "10"] and data.test.y.tolist() == [1, 0, 1]
    amounts = load_data(written(tmp_path, "a,y\n1,10.5\n2,2\n3,1e1\n")["train"])
    assert amounts.classes is None and amounts.test.y.tolist() == [10.5, 2.0, 10.0] and amounts.class_names == []
    with pytest.raises(DataError, match="whole numbers written as decimals"):
        load_data(written(tmp_path, "a,y\n1,1.0\n2,0.0\n3,1.0\n4,0.0\n")["train"])


def test_groups_of_numbers_are_in_their_order_and_few(tmp_path):
    data = load_data(written(tmp_path, "a,g,y\n1,10,0\n2,9,1\n3,100,1\n")["train"], groups=("g",))
    assert data.group_names == {"g": ["9", "10", "100"]} and data.test.groups["g"].tolist() == [1, 0, 2]
    many = "g,y\n" + "".join(f"{at},{at % 2}\n" for at in range(60))
    with pytest.raises(DataError, match=r"'g'.* 60 different values.*bins"):
        load_data(written(tmp_path, many)["train"], groups=("g",))


def test_long_tables_come_out_in_order(tmp_path):
    n = 20_001  # more than two chunks
    rows = "".join(f"{at},{'xyz'[at % 3]},{at % 2}\n" for at in range(n))
    x, y = load_data(written(tmp_path, "a,b,y\n" + rows)["train"]).test.tensors()
    assert x[:, 0].tolist() == list(range(n)) and y.tolist() == [at % 2 for at in range(n)]
    assert torch.equal(x[:, 1:].argmax(1), torch.arange(n) % 3) and torch.equal(x[:, 1:].sum(1), torch.ones(n))


def test_a_column_of_numbers_that_turns_to_words_late_is_categories(tmp_path):
    rows = "".join(f"{at % 4},{at % 2}\n" for at in range(9000)) + "many,1\n"
    data = load_data(written(tmp_path, "a,y\n" + rows)["train"])
    assert data.feature_names == ["a=0", "a=1", "a=2", "a=3", "a=many"]
    assert data.test.tensors()[0].sum(0).tolist() == [2250, 2250, 2250, 2250, 1]


@pytest.mark.parametrize(("text", "told"), [
    ("a,b,y\n1,,0\n2,?,1\nNA,3,0\n", r"missing values: 'a' in 1 of 3 rows, 'b' in 2 of 3 rows.*Fill them in"),
    ("a,b,y\n1,2,0\n3,1\n", r"line 3 .* has 2 values.*3 as in the header"),
    ("a,a,y\n1,2,0\n", "names 'a' more than once"),
    ("1,2,0\n3,4,1\n", "holds only numbers"),
    ("a;b;y\n1;2;0\n", "separated by commas"),
    ("", "is empty"),
    ("a,y\n1,0\ninf,1\n", "1 infinite values"),
    ('a,y\n"1,0\n', "cannot be read"),
    ("y\n1\n", "no column beside the label"),
    ("a,y\n" + "x" * 1_100_000 + ",1\n", "line of more than"),
    ("a,y\n" + "".join(f"word{at},{at % 2}\n" for at in range(1500)), r"'a' .* more than 1000 different values"),
    ("a,y\n" + "".join(f"1,{at}\n" for at in range(1200)), r"'y' .* different values"),
])
def test_broken_tables_are_told(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        load_data(written(tmp_path, text)["train"])


@pytest.mark.parametrize(("test", "told"), [
    ("age,colour,sex\n1,red,m\n", r"test\.csv\.gz lacks grade.*columns of"),
    ("age,colour,sex,grade,x\n1,red,m,bad,2\n", "adds x"),
    ("age,colour,sex,grade\nold,red,m,bad\n", r"'age' of .* holds 'old'.*numbers, as in the training table"),
    ("age,colour,sex,grade\n1,red,m,great\n", r"label 'great' in column 'grade'.*bad, good"),
])
def test_tables_that_differ_are_told(tmp_path, test, told):
    with pytest.raises(DataError, match=told):
        load_data(**written(tmp_path, test=test))


def test_text_that_is_not_utf8_or_a_cut_archive_is_told(tmp_path):
    paths = written(tmp_path)
    paths["train"].write_bytes("a,y\nä,0\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_data(paths["train"])
    packed = gzip.compress(("a,y\n" + "1,0\n2,1\n" * 500).encode())
    paths["test"].write_bytes(packed[:-15])
    with pytest.raises(DataError, match=r"cannot be read.*cut short"):
        load_data(paths["test"])
    paths["train"].write_bytes("\ufeffa,y\n1,0\n2,1\n".encode())
    assert load_data(paths["train"]).feature_names == ["a"]


def test_a_table_too_large_for_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("hauberk.io.tables.MEMORY_LIMIT", 50)
    with pytest.raises(DataError, match=r"3 rows of 5 features.*at most 50 bytes"):
        load_data(written(tmp_path)["train"])


def test_plain_parquet_columns_are_a_table_like_csv(tmp_path):
    paths = written(tmp_path)
    csv = load_data(**paths, groups=["sex"])
    for name, rows in (("train", TRAIN), ("test", TEST)):
        cells = [[cell.strip() for cell in line.split(",")] for line in rows.split("\n")[1:-1]]
        columns = list(zip(*cells, strict=True))
        pq.write_table(pa.table({
            "age": [float(one) for one in columns[0]], "colour": pa.array(columns[1]).dictionary_encode(), "sex": columns[2],
            "grade": columns[3], "__index_level_0__": range(len(cells)),
        }).select(["age", "colour", "sex", "grade", "__index_level_0__"]), tmp_path / f"{name}.parquet", row_group_size=2)
    data = load_data(tmp_path / "test.parquet", train=tmp_path / "train.parquet", groups=["sex"])
    for role in ("train", "test"):
        ours, theirs = data.splits()[role], csv.splits()[role]
        assert torch.equal(ours.tensors()[0], theirs.tensors()[0]) and torch.equal(ours.y, theirs.y)
        assert torch.equal(ours.groups["sex"], theirs.groups["sex"])
    assert (data.feature_names, data.class_names) == (csv.feature_names, csv.class_names)


def test_numbers_and_truths_of_parquet(tmp_path):
    whole = pa.array([1, 2, 3], pa.int16())
    pq.write_table(pa.table({"a": whole, "b": [True, False, True], "y": [1, 0, 2]}), tmp_path / "t.parquet")
    data = load_data(tmp_path / "t.parquet", groups=["b"])
    assert data.test.tensors()[0].tolist() == [[1, 1], [2, 0], [3, 1]] and data.test.y.tolist() == [1, 0, 2]
    pq.write_table(pa.table({"a": [1, None, 3], "y": [1, 0, 2]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'a' in 1 of 3 rows"):
        load_data(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": [[1], [2]], "y": [1, 0]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'a' of .* holds list<"):
        load_data(tmp_path / "t.parquet")


def encoded(value):
    made = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 255 - value)).save(made, "PNG")
    return {"bytes": made.getvalue(), "path": f"{value}.png"}


def hub(path, values, **more):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"image": [encoded(value) for value in values], "label": [value % 2 for value in values], **more})
    pq.write_table(table.replace_schema_metadata(notes), path, row_group_size=4)


def test_pictures_of_the_hub_are_decoded_by_position(tmp_path):
    hub(tmp_path / "train-00000-of-00002.parquet", range(10))
    hub(tmp_path / "train-00001-of-00002.parquet", range(10, 16))
    hub(tmp_path / "validation-00000-of-00001.parquet", range(3))
    data = load_data(tmp_path)
    order = torch.tensor([15, 0, 9, 10, 4, 3, 3])
    x, y = data.train.take(order)
    assert x.shape == (7, 3, 3, 4) and torch.allclose(x[:, 0, 1, 1], order / 255, atol=1e-7)
    assert torch.allclose(x[:, 2, 0, 0], 1 - order / 255, atol=1e-6) and torch.equal(y, order % 2)
    assert (data.class_names, data.classes, len(data.train), len(data.test)) == (["cat", "dog"], 2, 16, 3)
    with pytest.raises(IndexError):
        data.test.x.take(torch.tensor([3]))


def test_row_groups_beyond_the_cache_are_read_again(tmp_path, monkeypatch):
    hub(tmp_path / "d.parquet", range(12), who=["a", "b", "c"] * 4)
    monkeypatch.setattr("hauberk.io.parquet.CACHE_BYTES", 0)
    data = load_data(tmp_path / "d.parquet", groups=["who"], label="label")
    for _ in range(2):
        assert torch.allclose(data.test.tensors()[0][:, 0, 0, 0], torch.arange(12) / 255, atol=1e-7)
        assert len(data.test.x._kept) == 1
    assert data.test.groups["who"].tolist() == [0, 1, 2] * 4


def test_broken_parquet_is_told(tmp_path):
    place = tmp_path / "d.parquet"
    hub(place, range(6))
    whole = place.read_bytes()
    for content in (whole[:-100], whole[:50], b"", b"PAR1junkPAR1"):
        place.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            load_data(place)
    pq.write_table(pa.table({"image": [encoded(1), {"bytes": None, "path": "/etc/hostname"}], "label": [0, 1]}), place)
    with pytest.raises(DataError, match=r"row 1 of row group 0 .* has no bytes.*embedded"):
        load_data(place).test.tensors()
    pq.write_table(pa.table({"image": [encoded(1)] * 2, "a": [0, 1], "b": [1, 2]}), place)
    with pytest.raises(DataError, match=r"columns image, a, b.*label="):
        load_data(place)
    hub(tmp_path / "train.parquet", range(3))
    with pytest.raises(DataError, match="names no role"):
        load_data(tmp_path)
