import pytest
import torch
from toy_training import RATES, Toy, get_data

from crane_pyg.training import Recipe, fit

RECIPE = Recipe(epochs=1, batch_size=64, min_batches=1)


@pytest.fixture(scope='module')
def data():
    return get_data()


def run(model, data, recipe=RECIPE, **kwargs):
    return fit(model, data, recipe, progress=False, **kwargs)


def fails(model, data, match, **kwargs):
    with pytest.raises(ValueError, match=match):
        run(model, data, **kwargs)


def test_model_without_loss(data):
    class Silent(torch.nn.Linear):
        pass

    match = r"'model' .* 'loss' or 'loss_terms' \(got Silent, which has nei"
    fails(Silent(2, 2), data, match)


def test_no_model(data):
    fails(lambda data: None, data, r"'model' .* module \(got function\)")


def test_model_without_parameters(data):
    class Empty(torch.nn.Module):
        def loss(self):
            raise AssertionError

    fails(Empty(), data, r"'model' needs to have parameters \(got Empty\)")


def test_model_elsewhere(data):
    match = r"'model' .* device of 'data', cpu \(got meta\)"
    fails(Toy().to('meta'), data, match)


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        (lambda user, item: user, r'\(got \[\[8\], \[8\]\]\)'),
        (lambda user, item: None, r'\(got NoneType\)'),
        (lambda user, item: (user,), r'\(got tuple\)'),
        (lambda user, item: {'user': user, 'item': item}, r'\(got dict\)'),
        (lambda user, item: (item, user), r'\[\[40, 8\], \[60, 8\]\]'),
        (lambda user, item: (user, item[:-1]), r'\[\[60, 8\], \[39, 8\]\]'),
        (lambda user, item: (user, item[:, 1:]), r'\[\[60, 8\], \[40, 7\]\]'),
        (lambda user, item: (user, item.tolist()), r'\(got tuple\)'),
        (lambda user, item: (user.sum(), item.sum()), r'\[\[\], \[\]\]'),
    ],
    ids=range(9),
)
def test_model_of_other_outputs(data, change, found):
    class Other(Toy):
        def forward(self, data):
            return change(*super().forward(data))

    match = rf"'model' .* all users and items, \[60, d\] and \[40, d\].*{found}"
    fails(Other(), data, match)


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        (lambda loss: loss.view(1), r"scalar .* 'loss' \(got \[1\]\)"),
        (lambda loss: loss.repeat(3, 2), r'scalar .* \(got \[3, 2\]\)'),
        (lambda loss: loss.item(), r'scalar .* \(got float\)'),
        (lambda loss: None, r'scalar .* \(got NoneType\)'),
        (lambda loss: loss.detach(), r"gradient \(got none in \['loss'\]\)"),
    ],
    ids=range(5),
)
def test_loss_that_is_no_scalar(data, change, found):
    class Other(Toy):
        def loss(self, *args):
            return change(super().loss(*args))

    fails(Other(), data, rf"'model' needs to return a .*{found}")


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        (lambda loss: loss, r'dictionary .* \(got Tensor\)'),
        (lambda loss: {}, r'dictionary .* \(got dict\)'),
        (lambda loss: {'seconds': loss}, r"\(got \['seconds'\]\)"),
        (lambda loss: {'a': loss, 'b': 0.0}, r"'b' \(got float\)"),
        (lambda loss: {'a': loss, 'b': loss.view(1)}, r"'b' \(got \[1\]\)"),
    ],
    ids=range(5),
)
def test_terms_that_are_none(data, change, found):
    class Other(Toy):
        def loss_terms(self, *args):
            return change(super().loss(*args))

    fails(Other(), data, rf"'model' needs to return .*{found}")


def test_terms_without_loss(data):
    class Only(Toy):
        loss = None

        def loss_terms(self, *args):
            # One that has no gradient is a term as well:
            return {'a': Toy.loss(self, *args), 'b': torch.tensor(2.0)}

    history = run(Only(), data)
    assert history.epochs[0]['b'] == 2.0


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_loss_that_is_not_finite(data, value):
    class Other(Toy):
        def loss(self, *args):
            loss = super().loss(*args)
            return loss + float(value) if self.calls == 2 else loss

    model = Other()
    match = (
        rf"'model' .* \(got {value} in the term 'loss' at epoch 1, step 2 of"
    )
    fails(model, data, match)
    assert all(x.isfinite().all() for x in model.parameters())


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'optimizer': lambda x: None}, r"'optimizer' .* \(got NoneType\)"),
        ({'scheduler': lambda x: x}, r"'scheduler' .* \(got Adam\)"),
        ({'callbacks': print}, r"'callbacks' .* \(got <built-in function p"),
        ({'callbacks': [3]}, r"'callbacks' needs .* \(got \[3\]\)"),
        ({'loss_options': [3]}, r"'loss_options' needs .* \(got \[3\]\)"),
        ({'resume': True}, r"'resume' needs a 'checkpoint' .* \(got True\)"),
        ({'recipe': {'lr': 1}}, r"'recipe' needs .* \(got dict\)"),
        ({'edge_type': 'rates'}, r"'edge_type' needs .* \(got rates\)"),
        ({'edge_type': ('user', 'likes', 'item')}, r"'edge_index' is missing"),
        ({'recipe': Recipe(metric='ndcg@41')}, r"at most 40.*got 'ndcg@41'"),
        ({'checkpoint': '/nowhere/to/a'}, r"'checkpoint' .*'/nowhere/to/a'"),
        ({'checkpoint': '/'}, r"'checkpoint' needs to be a file .*'/'"),
    ],
    ids=range(12),
)
def test_bad_arguments(data, kwargs, match):
    model = Toy()
    fails(model, data, match, **kwargs)
    assert not model.graphs  # Before anything is trained.


def test_bad_data(data):
    fails(Toy(), data.to_dict(), r"'data' .* 'HeteroData' \(got dict\)")
    other = data.clone()
    other[RATES].val_edge_label_index = torch.tensor([[0], [40]])
    fails(Toy(), other, r"'val_edge_label_index\[1\]' .* \(got 40\)")
    other = data.clone()
    other[RATES].val_edge_label = torch.ones(3)
    fails(Toy(), other, r"'val_edge_label' .* \(got \[3\]\)")
    other = data.clone()
    other[RATES].edge_index = torch.empty(2, 0, dtype=torch.long)
    fails(Toy(), other, r"'edge_index' .* \(got 0 pairs\)")
    recipe = Recipe(edge_dropping=1e-9)
    match = r"'edge_dropping' needs .*\(got 1e-09 of \d+ pairs\)"
    fails(Toy(), data, match, recipe=recipe)
