import pytest

from crane_pyg.training import History, Recipe


def get_history(values, **kwargs):
    history = History(Recipe(**kwargs))
    gains = [
        history.add({'loss': 1 / (n + 1), 'recall@20': x}, {'recall@20': x})
        for n, x in enumerate(values)
    ]
    return history, gains


def test_history():
    history, gains = get_history([0.1, 0.3, 0.3, 0.2])
    assert gains == [True, True, False, False]
    assert history.best_epoch == 2
    assert history.best == {'recall@20': 0.3}
    assert history.metric == [0.1, 0.3, 0.3, 0.2]
    assert history.loss == [1, 1 / 2, 1 / 3, 1 / 4]
    assert history.curve('epoch') == [1, 2, 3, 4]
    assert len(history) == 4
    with pytest.raises(ValueError, match=r"'loss'.* \(got 'bpr'\)"):
        history.curve('bpr')


def test_history_of_nothing():
    history = History()
    assert history.loss == history.metric == history.curve('any') == []
    assert history.seconds == 0
    assert history.best_epoch == 0
    assert history.ending() is None


def test_history_without_validation():
    history = History()
    assert all(history.add({'loss': x}, {}) for x in (0.1, 0.2))
    assert history.best_epoch == 2
    assert history.metric == []
    assert history.best == {}


@pytest.mark.parametrize(
    ('kwargs', 'num', 'ending'),
    [
        ({'patience': 3}, 4, None),
        ({'patience': 3}, 5, 'patience'),
        ({'patience': 3, 'min_epochs': 6}, 5, None),
        ({'patience': 3, 'min_epochs': 6}, 6, 'patience'),
        ({'patience': None, 'epochs': 6}, 5, None),
        ({'patience': None, 'epochs': 6}, 6, 'epochs'),
        ({'patience': 9, 'epochs': 6}, 6, 'epochs'),
        ({'patience': 9, 'epochs': 6, 'min_epochs': 8}, 6, 'epochs'),
    ],
)
def test_history_ending(kwargs, num, ending):
    values = [0.1, 0.3, *([0.2] * 8)][:num]  # The second is the best.
    history, _ = get_history(values, **kwargs)
    assert history.ending() == ending


def test_history_state():
    history, _ = get_history([0.1, 0.3], epochs=2)
    history.stopped = 'epochs'
    state = history.state_dict()
    assert History(history.recipe, **state) == history
    state['epochs'][0]['loss'] = 7.0
    assert history.loss[0] == 1  # They share nothing.
