"""The study of the model's zoom: its controls, and what it reads off a run."""

import torch
from zoom.trained import by_chance, chosen_by, from_the_center, table

from modeling_qca.zoom_qca import Windows

WINDOWS = Windows.of((4, 4), 2, torch.device("cpu"))
MAPS = torch.full((200, 16), 1 / 16)


def test_chance_takes_every_window_as_often_and_none_twice():
    torch.manual_seed(0)
    chosen, shares = by_chance(WINDOWS, MAPS, 2)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    counts = torch.bincount(chosen.flatten(), minlength=9)
    assert counts.min() > 20 and shares.unique().tolist() == [1.0]


def test_the_center_comes_first():
    chosen, _ = from_the_center(WINDOWS, MAPS, 5)
    assert chosen[0].tolist()[0] == 4 and set(chosen[0].tolist()[1:]) == {1, 3, 5, 7}


def test_the_model_chooses_by_the_question_again_afterwards():
    by_question = Windows.choose
    with chosen_by(by_chance):
        assert Windows.choose is by_chance
    assert Windows.choose is by_question


def test_table_shows_each_row_with_its_seeds():
    run = {"majority": 0.2, "question alone": 0.3, "shuffled questions": 0.1, "pointing, shuffled question": 0.05}
    run |= {"accuracy": 0.5, "16 to 26 pixels": 0.4, "27 to 37 pixels": 0.5, "38 to 48 pixels": 0.6, "pointing": 0.3}
    runs = {"whole picture, 224 px": {"0": run | {"gflop": 5.7, "patches": 256.0}}}
    runs["1 window"] = {
        str(seed): run | {"accuracy": 0.7 + seed / 10, "gflop": 11.5, "patches": 512.0, "choice": 0.9}
        for seed in (0, 1)
    }
    *baselines, whole, window = table(runs)["rows"]
    assert [row[:3] for row in baselines] == [["majority", "", "0.200"], ["question alone", "", "0.300"]]
    assert whole[:7] == ["whole picture, 224 px", "1", "0.500", "0.100", "0.400", "0.500", "0.600"]
    assert whole[7:] == ["0.300", "0.050", "", "256", "5.70"]
    assert window[:3] == ["1 window", "2", "0.750 ± 0.071"] and window[9] == "0.900 ± 0.000"
