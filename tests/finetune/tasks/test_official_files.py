"""The twelve tasks' official files, as they are published and as they may be broken."""

import json
import pickle
import re
import shutil

import numpy as np
import official_files as files
import pytest
from data_sets import make_dataset

from finetune.annotations.answers import normalise
from finetune.annotations.official_files import find_file, read_lines, read_pickle, read_text, scan_lines
from finetune.data.regions import Regions
from finetune.task_types.base import TASK_TOKENS
from finetune.tasks import all_tasks, find_task, paper_tasks
from shards.common.errors import UserError

TASKS = all_tasks()


def test_the_twelve_tasks_are_those_of_the_papers_table():
    """Task token, words, batch size and learning rate of table 8."""
    tasks = paper_tasks().values()
    table = {task.name: (task.group, task.token, task.max_tokens, task.batch_size, task.lr) for task in tasks}
    assert table == {
        "vqa": ("G1", 1, 23, 128, 4e-5),
        "vgqa": ("G1", 2, 26, 128, 4e-5),
        "gqa": ("G1", 15, 26, 128, 4e-5),
        "coco_retrieval": ("G2", 7, 30, 128, 2e-5),
        "flickr_retrieval": ("G2", 8, 30, 128, 2e-5),
        "refcoco": ("G3", 9, 20, 256, 2e-5),
        "refcoco+": ("G3", 10, 20, 256, 2e-5),
        "refcocog": ("G3", 11, 20, 256, 2e-5),
        "visual7w": ("G3", 4, 20, 256, 2e-5),
        "guesswhat": ("G3", 17, 256, 64, 2e-5),
        "nlvr2": ("G4", 12, 40, 64, 2e-5),
        "snli_ve": ("G4", 13, 56, 256, 2e-5),
    }
    tokens = {task.token for task in TASKS.values()}
    assert len(tokens) == len(TASKS) == 15 and tokens < set(range(TASK_TOKENS))


def test_a_task_or_a_split_that_is_not_there_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"--task refcoco\+\+: should be one of vqa, vgqa, gqa, coco_retrieval"):
        find_task("refcoco++")
    with pytest.raises(UserError, match="--split testC: refcoco has train, val, testA, testB"):
        TASKS["refcoco"].read(tmp_path, "testC")


def test_vqa(tmp_path):
    files.vqa(tmp_path)
    first, second = TASKS["vqa"].read(tmp_path, "train")
    assert (first.id, first.text, first.images) == (262148000, "Where is he looking?", ("262148",))
    assert first.target == pytest.approx({"net": 1.0, "racket": 0.3, "rackets": 0.3, "ball": 0.3})
    assert [first.facts["answer_type"], second.facts["answer_type"]] == ["other", "yes/no"]
    files.vqa(tmp_path, split="val2014", questions=(7, 3, 5))
    assert [example.id for example in TASKS["vqa"].read(tmp_path, "minval")] == [7]
    assert [example.id for example in TASKS["vqa"].read(tmp_path, "trainval")] == [262148000, 262148001, 3, 5]
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(
        json.dumps({"questions": [{"image_id": 1, "question": "What?", "question_id": 10}]})
    )
    assert TASKS["vqa"].read(tmp_path, "test")[0].target is None


def test_vqas_vocabulary_is_built_from_train_and_val(tmp_path):
    files.vqa(tmp_path, questions=range(6))
    files.vqa(tmp_path, split="val2014", questions=range(10, 13))
    assert TASKS["vqa"].vocabulary(tmp_path).answers == ["net"]
    files.vqa(tmp_path, split="val2014", questions=range(10, 12))
    with pytest.raises(UserError, match="no answer is the ground truth of 9 or more questions"):
        TASKS["vqa"].vocabulary(tmp_path)


def test_vgqa(tmp_path):
    files.vgqa(tmp_path)
    train, val = (TASKS["vgqa"].read(tmp_path, split) for split in ("train", "val"))
    assert [example.id for example in train + val] == list(range(986769, 986775)) and len(val) == 1
    assert train[0].target == {"2": 1.0} and train[1].target == {"green": 1.0} and train[0].images == ("1",)


def test_gqa(tmp_path):
    files.gqa(tmp_path)
    files.gqa(tmp_path, "val", first=50)
    train, trainval, minval = (TASKS["gqa"].read(tmp_path, split) for split in ("train", "trainval", "minval"))
    assert train[0].id == "0002000" and train[0].images == ("n161313",) and train[0].target == {"blue": 1.0}
    assert sorted(e.id for e in trainval + minval) == ["0002000", "0002001", "0002002", "0002050", "0002051", "0002052"]
    assert TASKS["gqa"].vocabulary(tmp_path).answers == ["blue", "yes"]


def test_gqas_answers_are_as_annotated(tmp_path):
    files.gqa(tmp_path)
    path = tmp_path / "train_balanced_questions.json"
    path.write_text(path.read_text().replace('"blue"', '"t-shirt"'))
    files.gqa(tmp_path, "val", first=50)
    task = TASKS["gqa"]
    vocabulary = task.vocabulary(tmp_path)
    assert vocabulary.answers == ["blue", "t-shirt", "yes"]
    examples = task.read(tmp_path, "train")
    assert all(vocabulary.target(example.target).sum() == 1 for example in examples)
    predicted = [vocabulary.answers[vocabulary.target(example.target).argmax()] for example in examples]
    assert task.scores(examples, predicted)["accuracy"].tolist() == [1, 1, 1]


def test_retrieval(tmp_path):
    files.karpathy(tmp_path / "dataset_coco.json")
    train, val, test = (TASKS["coco_retrieval"].read(tmp_path, split) for split in ("train", "val", "test"))
    assert [len(split) for split in (train, val, test)] == [10, 5, 5]
    assert train[0].images == ("391895",) and train[0].text == "A man 0." and train[9].images == ("391896",)
    files.karpathy(tmp_path / "dataset_flickr30k.json", coco=False)
    assert TASKS["flickr_retrieval"].read(tmp_path, "val")[0].images == ("1000092797",)


def test_flickr8k_stands_in_for_flickr30k(tmp_path):
    task, path = TASKS["flickr_retrieval"], tmp_path / "dataset_flickr8k.json"
    files.karpathy(path, coco=False)
    assert [len(task.read(tmp_path, split)) for split in ("train", "val", "test")] == [10, 5, 5]
    assert task.missing_files(tmp_path) == []
    path.write_text(path.read_text().replace("1000092797.jpg", "1000092797_693b08cb0e.jpg"))  # as Flickr8k has them
    assert task.read(tmp_path, "val")[0].images == ("1000092797",)
    files.karpathy(tmp_path / "dataset_flickr30k.json", coco=False)
    both = r"found both dataset_flickr30k\.json and dataset_flickr8k\.json; keep one"
    with pytest.raises(UserError, match=both):
        task.read(tmp_path, "val")
    with pytest.raises(UserError, match=r"dataset_flickr30k\.json: not found"):
        task.read(tmp_path / "elsewhere", "val")
    assert task.missing_files(tmp_path / "elsewhere") == ["dataset_flickr30k.json"]


def test_cocos_thousands(tmp_path):
    files.karpathy(tmp_path / "dataset_coco.json", ("train", *("test",) * 2500))
    task = TASKS["coco_retrieval"]
    images = {split: [e.images[0] for e in task.read(tmp_path, split)][::5] for split in ("test", "test5k", "fold2")}
    assert {split: len(ids) for split, ids in images.items()} == {"test": 1000, "test5k": 2500, "fold2": 500}
    assert images["test5k"][:1000] == images["test"] and images["test5k"][2000:] == images["fold2"]
    with pytest.raises(UserError, match="no examples in coco_retrieval's split fold3"):
        task.read(tmp_path, "fold3")


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [("refcoco", "refs(unc).p", "testA"), ("refcoco+", "refs(unc).p", "testA"), ("refcocog", "refs(umd).p", "test")],
)
def test_referring_expressions(tmp_path, name, file, split):
    files.refer(tmp_path, file, ("train", split))
    one, two = TASKS[name].read(tmp_path, split)
    assert (one.id, two.id, one.text, one.images) == (2, 3, "navy Blue shirt", ("581857",))
    assert one.target == (10.5, 20.0, 40.5, 60.25) and one.facts == {"width": 640, "height": 427}


def test_visual7w(tmp_path):
    files.visual7w(tmp_path)
    (example,) = TASKS["visual7w"].read(tmp_path, "val")
    assert example.images == ("v7w_2385153",) and example.candidate_ids == ("2", "4", "7", "9")
    assert example.target == 3 and example.candidates[3] == (90, 5, 110, 35)


@pytest.mark.parametrize("packed", [True, False])
def test_guesswhat(tmp_path, packed):
    files.guesswhat(tmp_path, packed=packed)
    games = TASKS["guesswhat"].read(tmp_path, "valid")
    assert len(games) == 3 and games[0].target == 1 and games[0].candidates[1] == (1, 2, 11, 22)
    assert games[0].text == "start Is it alive? answer Yes stop start On the left? answer N/A stop"
    assert [game.id for game in TASKS["guesswhat"].read(tmp_path, "valid-success")] == [0]
    assert TASKS["guesswhat"].image_counts(tmp_path, "valid-success").total() == 1
    assert TASKS["guesswhat"].is_test("test-success") and not TASKS["guesswhat"].is_test("train-success")


def test_nlvr2(tmp_path):
    files.nlvr2(tmp_path)
    examples = TASKS["nlvr2"].read(tmp_path, "dev")
    assert examples[1].images == ("dev-850-1-img0", "dev-850-1-img1")
    assert [example.target for example in examples] == [0, 1, 0, 1]


def test_the_real_nlvr2_file(tmp_path, real_data):
    (tmp_path / "dev.json").symlink_to(real_data / "annotations" / "nlvr2_dev.json")
    examples = TASKS["nlvr2"].read(tmp_path, "dev")
    assert len(examples) == 6982 and len({example.images for example in examples}) > 2000
    right = TASKS["nlvr2"].scores(examples, [example.target for example in examples])
    assert right["accuracy"].mean() == right["consistency"].mean() == 1


def test_snli_ve(tmp_path):
    files.snli_ve(tmp_path)
    examples = TASKS["snli_ve"].read(tmp_path, "dev")
    assert [example.target for example in examples] == [2, 1, 0]
    assert {example.images for example in examples} == {("4705552913",)}
    assert examples[0].text == "The sisters are hugging 0."


def test_broken_pairs_of_snli_ve_are_told_by_line_and_key(tmp_path):
    files.snli_ve(tmp_path)
    path = tmp_path / "snli_ve_dev.jsonl"
    whole = path.read_text()
    for old, new, complaint in (
        ('"gold_label": "neutral"', '"gold_label": "maybe"', "line 2: gold_label is 'maybe'; should be contradiction"),
        ('"gold_label": "neutral"', '"label": "neutral"', "line 2: has no gold_label; it has Flickr30K_ID"),
        ('"Flikr30kID"', '"image"', "line 1: has no Flickr30K_ID; download the file again"),
        ('"Flickr30K_ID": "4705552913"', '"Flickr30K_ID": 4.5', "line 2: Flickr30K_ID is 4.5; should be str or int"),
        ('"sentence2": "The sisters are hugging 2."', '"sentence2": null', "line 3: sentence2 is None; should be str"),
    ):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(UserError, match=rf"snli_ve_dev\.jsonl, {re.escape(complaint)}"):
            TASKS["snli_ve"].read(tmp_path, "dev")
    path.write_text(whole.replace('"Flickr30K_ID": "4705552913"', '"Flickr30K_ID": 4705552913'))
    assert len(TASKS["snli_ve"].read(tmp_path, "dev")) == 3


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "refs(unc).p"
    for value in (Harmful(), [np.zeros(2)], {1, 2}):
        path.write_bytes(pickle.dumps(value, protocol=2))
        with pytest.raises(UserError, match=r"refs\(unc\)\.p: is not a pickle of plain lists.*it names"):
            read_pickle(path)
    path.write_bytes(pickle.dumps([{"a": 1}], protocol=2)[:-3])
    with pytest.raises(UserError, match="is not a pickle of plain lists"):
        read_pickle(path)
    path.write_bytes(b"(dp1\nS'sent'\np2\nS'na\\xc3\\xafve'\np3\ns.")  # Python 2's str, in UTF-8
    assert read_pickle(path) == {"sent": "naïve"}


def spoil(path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_broken_files_are_told_by_file_record_and_key(tmp_path):
    files.vqa(tmp_path)
    questions = tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json"
    spoil(questions, lambda value: value["questions"][1].pop("question"))
    with pytest.raises(UserError, match=r"train2014_questions\.json, question 1: has no question; it has image_id"):
        TASKS["vqa"].read(tmp_path, "train")
    files.vqa(tmp_path, questions=(1, 1))
    with pytest.raises(UserError, match=r"annotation 1: duplicate question_id 1"):
        TASKS["vqa"].read(tmp_path, "train")
    files.vqa(tmp_path)
    spoil(questions, lambda value: value["questions"].append({"question_id": 5, "image_id": 1, "question": "?"}))
    with pytest.raises(UserError, match=r"question 2: question_id 5 has no annotation"):
        TASKS["vqa"].read(tmp_path, "train")
    spoil(questions, lambda value: value["questions"][0].update(question_id="5"))
    with pytest.raises(UserError, match=r"question 0: question_id is '5'; should be int"):
        TASKS["vqa"].read(tmp_path, "train")
    questions.write_text(questions.read_text()[:-9])
    with pytest.raises(UserError, match=r"train2014_questions\.json: is not valid JSON"):
        TASKS["vqa"].read(tmp_path, "train")
    questions.unlink()
    with pytest.raises(UserError, match=r"train2014_questions\.json: not found; it is an official"):
        TASKS["vqa"].read(tmp_path, "train")


def test_broken_lines_are_told_by_number(tmp_path):
    files.nlvr2(tmp_path)
    path = tmp_path / "dev.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace('"False"', '"Maybe"')]))
    with pytest.raises(UserError, match=r"dev\.json, line 3: label is 'Maybe'; should be False or True"):
        TASKS["nlvr2"].read(tmp_path, "dev")
    path.write_text("\n".join([*lines[:2], lines[2].replace("dev-850-2-0", "dev-850-2")]))
    with pytest.raises(UserError, match=r"line 3: identifier is 'dev-850-2'; should be SPLIT-SET-PAIR-SENTENCE"):
        TASKS["nlvr2"].read(tmp_path, "dev")
    path.write_text("\n".join([*lines[:2], lines[2][:40]]))
    with pytest.raises(UserError, match=r"dev\.json, line 3: is not valid JSON"):
        TASKS["nlvr2"].read(tmp_path, "dev")
    path.write_text("")
    with pytest.raises(UserError, match="no examples in nlvr2's split dev"):
        TASKS["nlvr2"].read(tmp_path, "dev")
    files.guesswhat(tmp_path)
    packed = tmp_path / "guesswhat.valid.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:60])
    with pytest.raises(UserError, match=r"valid\.jsonl\.gz, after line 0: cannot be read \(Compressed file ended"):
        TASKS["guesswhat"].read(tmp_path, "valid")


def test_boxes_that_are_not_there_or_not_boxes(tmp_path):
    files.refer(tmp_path)
    spoil(tmp_path / "instances.json", lambda value: value["annotations"][1].update(bbox=[1, 2, -3, 4]))
    with pytest.raises(UserError, match=r"instances\.json, annotation 1: bbox has a negative width or height"):
        TASKS["refcoco"].read(tmp_path, "testA")
    spoil(tmp_path / "instances.json", lambda value: value["annotations"].pop())
    with pytest.raises(UserError, match=r"record 1: annotation 1719311 is not in .*instances\.json"):
        TASKS["refcoco"].read(tmp_path, "testA")
    files.visual7w(tmp_path)
    spoil(tmp_path / "dataset_v7w_pointing.json", lambda value: value["boxes"].pop())
    with pytest.raises(UserError, match="image 0: box 7 is not among the boxes"):
        TASKS["visual7w"].read(tmp_path, "val")


def repeated(records: list, **other):
    records.append(records[0] | other)


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_an_id_with_two_contents_is_refused(tmp_path, key):
    """The last one was taken, and its box or its image size scaled every box of the first."""
    files.refer(tmp_path)
    path = tmp_path / "instances.json"
    spoil(path, lambda value: repeated(value[key]))  # the same record twice changes nothing
    assert TASKS["refcoco"].read(tmp_path, "testA")
    spoil(
        path, lambda value: repeated(value[key], **({"bbox": [0, 0, 9, 9]} if key == "annotations" else {"width": 9}))
    )
    with pytest.raises(UserError, match=rf"instances\.json, {key[:-1]} \d+: duplicate id \d+ with other content"):
        TASKS["refcoco"].read(tmp_path, "testA")


def test_boxes_of_visual7w_with_a_negative_side_or_with_one_id(tmp_path):
    files.visual7w(tmp_path)
    path = tmp_path / "dataset_v7w_pointing.json"
    official = path.read_text()
    spoil(path, lambda value: value["boxes"][1].update(width=-3))
    with pytest.raises(UserError, match=r"pointing\.json, box 1: the box has a negative width or height \(-3 x"):
        TASKS["visual7w"].read(tmp_path, "val")
    path.write_text(official)
    spoil(path, lambda value: repeated(value["boxes"], x=0.5))
    with pytest.raises(UserError, match=r"duplicate id \d+ with other content"):
        TASKS["visual7w"].read(tmp_path, "val")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], r"\d+ of \d+ boxes begin or end outside of their images"),
        (lambda x, y, w, h: [x - 500, y, w, h], r"(\d+) of \1 boxes begin or end outside of their images"),
        (lambda x, y, w, h: [x, y - 500, w, h], r"(\d+) of \1 boxes begin or end outside of their images"),
        (lambda x, y, w, h: [x / 1000, y / 1000, w / 1000, h / 1000], "all boxes are between 0 and 1"),
    ],
    ids=["corners", "left", "above", "fractions"],
)
def test_boxes_in_other_units_are_refused(world, tmp_path, change, words):
    """Every score of such a file was 0, without a word."""
    shutil.copytree(world / "refcoco", tmp_path / "refcoco")
    path = tmp_path / "refcoco" / "instances.json"

    def spoilt(value):
        for record in value["annotations"]:
            record["bbox"] = change(*record["bbox"])

    spoil(path, spoilt)
    with pytest.raises(UserError, match=rf"instances\.json: {words}; they should be x, y, width, height in pixels"):
        TASKS["refcoco"].read(tmp_path / "refcoco", "val")


def test_a_visual_genome_answer_is_right_in_any_spelling_and_wrong_outside_the_vocabulary(tmp_path):
    files.vgqa(tmp_path)
    examples = TASKS["vgqa"].read(tmp_path, "train")[:3]
    said = ["two", "a green", "red"]
    assert [normalise(s) in e.target for s, e in zip(said, examples, strict=True)] == [True, True, False]
    assert TASKS["vgqa"].scores(examples, said)["accuracy"].tolist() == [1, 1, 0]


def test_an_empty_list_of_answers_is_named(tmp_path):
    files.vqa(tmp_path)
    path = tmp_path / "v2_mscoco_train2014_annotations.json"
    value = json.loads(path.read_text())
    value["annotations"][1]["answers"] = []
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="annotation 1: answers of question_id 262148001 is empty"):
        find_task("vqa").read(tmp_path, "train")


def test_a_gqa_question_without_an_answer_is_named_where_all_have_one(tmp_path):
    for split in ("train", "val", "test"):
        files.gqa(tmp_path, split)
        path = tmp_path / f"{split}_balanced_questions.json"
        value = json.loads(path.read_text())
        del value["0002001"]["answer"]
        path.write_text(json.dumps(value))
    for split in ("train", "val", "trainval"):
        with pytest.raises(UserError, match=r"balanced_questions\.json, record 0002001: no answer, although"):
            find_task("gqa").read(tmp_path, split)
    assert [example.target for example in find_task("gqa").read(tmp_path, "test")].count(None) == 1


@pytest.mark.parametrize("place", ["images/2354786.jpg", "images\\2354786.jpg"])
def test_ids_with_folders_and_suffixes_are_those_of_the_regions(tmp_path, place):
    files.gqa(tmp_path)
    path = tmp_path / "train_balanced_questions.json"
    path.write_text(path.read_text().replace('"2354786"', json.dumps(place)))
    task = find_task("gqa")
    assert {example.images for example in task.read(tmp_path, "train")} == {("2354786",), ("n161313",)}
    assert set(task.image_counts(tmp_path, "train")) == {("2354786",), ("n161313",)}


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_official_files(tmp_path):
    for split in ("train", "val"):
        files.gqa(tmp_path / "gqa", split)
    files.vqa(tmp_path / "vqa")
    expected = {name: find_task(name).read(tmp_path / name, "train") for name in ("gqa", "vqa")}
    for path in tmp_path.glob("*/*.json"):
        path.write_bytes(MARK + path.read_bytes())
    for name, examples in expected.items():
        task = find_task(name)
        assert task.read(tmp_path / name, "train") == examples
        assert task.image_counts(tmp_path / name, "train")[examples[0].images]
    for name, text in (("a.jsonl", b'{"id": 1}\n{"id": 2}\n'), ("a.txt", b"one\ntwo\n")):
        (tmp_path / name).write_bytes(MARK + text)
    assert [record for _, record in read_lines(tmp_path / "a.jsonl")] == [{"id": 1}, {"id": 2}]
    assert list(scan_lines(tmp_path / "a.jsonl", dict[str, int])) == [{"id": 1}, {"id": 2}]
    assert [line for _, line in read_text(tmp_path / "a.txt")] == ["one", "two"]


def test_stray_folders_between_regions_and_files_are_no_data(tmp_path):
    make_dataset(tmp_path / "regions" / "train")
    make_dataset(tmp_path / "regions" / "test", (3,), first=2)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "regions" / name).mkdir()
        (tmp_path / "regions" / name / "._part-00000.tar").touch()
    (tmp_path / "regions" / "._x.tar").touch()
    assert len(Regions(tmp_path / "regions").reader) == 15
    for name in ("gqa/real", "gqa/__MACOSX", "gqa/.ipynb_checkpoints"):
        files.gqa(tmp_path / name)
    found = find_file(tmp_path / "gqa", "train_balanced_questions.json")
    assert found == tmp_path / "gqa" / "real" / "train_balanced_questions.json"


@pytest.mark.parametrize(
    ("name", "write", "file", "split", "change", "message"),
    [
        (
            "vqa",
            files.vqa,
            "v2_mscoco_train2014_annotations.json",
            "train",
            lambda value: value["annotations"][1]["answers"][3].update(answer=7),
            "annotation 1, answers 3: answer is 7; should be str",
        ),
        (
            "vgqa",
            files.vgqa,
            "question_answers.json",
            "train",
            lambda value: value[0]["qas"][2].pop("answer"),
            "image 0, qas 2: has no answer; it has a_objects, image_id, q_objects, qa_id, question",
        ),
        (
            "coco_retrieval",
            lambda folder: files.karpathy(folder / "dataset_coco.json"),
            "dataset_coco.json",
            "val",
            lambda value: value["images"][2].update(sentences={}),
            "image 2: sentences is {}; should be list",
        ),
        (
            "refcoco",
            files.refer,
            "instances.json",
            "train",
            lambda value: value["annotations"][0].update(bbox=[1, None, 2, 3]),
            "annotation 0: a value of bbox is None; should be int or float",
        ),
        (
            "visual7w",
            files.visual7w,
            "dataset_v7w_pointing.json",
            "val",
            lambda value: value["boxes"][1].update(x=True),
            "box 1: x is True; should be int or float",
        ),
        (
            "visual7w",
            files.visual7w,
            "dataset_v7w_pointing.json",
            "val",
            lambda value: value.pop("boxes"),
            "dataset_v7w_pointing.json: has no boxes; it has dataset, images",
        ),
    ],
)
def test_a_wrong_value_deep_in_a_record_is_named(tmp_path, name, write, file, split, change, message):
    write(tmp_path)
    if name == "vqa":
        files.vqa(tmp_path, split="val2014")
    spoil(tmp_path / file, change)
    with pytest.raises(UserError, match=re.escape(message)):
        find_task(name).read(tmp_path, split)


def test_a_wrong_value_in_a_line_is_named(tmp_path):
    files.guesswhat(tmp_path, packed=False)
    path = tmp_path / "guesswhat.valid.jsonl"
    path.write_text(path.read_text().replace('"On the left?"', "null", 1))
    with pytest.raises(UserError, match=r"valid\.jsonl, line 1, qas 1: question is None; should be str"):
        find_task("guesswhat").read(tmp_path, "valid")
    files.guesswhat(tmp_path, packed=False)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"valid\.jsonl, line 3: is not valid JSON"):
        find_task("guesswhat").read(tmp_path, "valid")


def test_fields_that_only_some_uses_need_are_named_where_they_are_missing(tmp_path):
    files.karpathy(tmp_path / "dataset_coco.json")
    spoil(tmp_path / "dataset_coco.json", lambda value: [value["images"][1].pop(key) for key in ("cocoid", "filename")])
    with pytest.raises(UserError, match="image 1: has neither cocoid nor filename"):
        find_task("coco_retrieval").read(tmp_path, "val")
    files.karpathy(tmp_path / "dataset_coco.json")
    spoil(tmp_path / "dataset_coco.json", lambda value: value["images"][1]["sentences"][2].pop("sentid"))
    with pytest.raises(UserError, match="image 1: has a sentence without sentid"):
        find_task("coco_retrieval").read(tmp_path, "val")
    for split in ("train2014", "val2014"):
        files.vqa(tmp_path, split=split)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    spoil(path, lambda value: value["annotations"][0].pop("multiple_choice_answer"))
    with pytest.raises(UserError, match=r"val2014_annotations\.json, question_id 262148000: has no multiple_choice_"):
        find_task("vqa").vocabulary(tmp_path)
    files.refer(tmp_path)
    spoil(tmp_path / "instances.json", lambda value: value["images"][0].pop("width"))
    with pytest.raises(UserError, match=r"instances\.json, image 581857: has no width or no height"):
        find_task("refcoco").read(tmp_path, "train")
    files.guesswhat(tmp_path, packed=False)
    path = tmp_path / "guesswhat.valid.jsonl"
    path.write_text(path.read_text().replace('"status": "failure", ', ""))
    assert len(find_task("guesswhat").read(tmp_path, "valid")) == 3
    with pytest.raises(UserError, match=r"line 2: has no status"):
        find_task("guesswhat").read(tmp_path, "valid-success")
