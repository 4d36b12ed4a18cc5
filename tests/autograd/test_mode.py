import pytest

import fastlayers as fl
from fastlayers import autograd

SWITCHES = {
    "no_grad": (fl.no_grad, False),
    "no_grad()": (fl.no_grad(), False),
    "enable_grad": (fl.enable_grad, True),
    "enable_grad()": (fl.enable_grad(), True),
    "inference_mode": (fl.inference_mode, False),
    "inference_mode()": (fl.inference_mode(), False),
    "inference_mode(False)": (fl.inference_mode(mode=False), True),
}


@pytest.fixture(params=[True, False], ids=["recording", "not recording"])
def outside(request):
    with fl.set_grad_enabled(request.param):
        yield request.param
        assert fl.is_grad_enabled() == request.param


@pytest.mark.parametrize(("switch", "inside"), SWITCHES.values(), ids=SWITCHES)
def test_decorated_functions(switch, inside, outside):
    @switch
    def call(n, *, scale=1):
        """Say it."""
        assert fl.is_grad_enabled() == inside
        return scale + call(n - 1) if n else 0

    assert call(3, scale=5) == 7
    assert call.__name__ == "call" and call.__doc__ == "Say it."

    @switch
    def fails():
        raise KeyError("inside")

    with pytest.raises(KeyError):
        fails()


@pytest.mark.parametrize("make", [fl.no_grad, fl.enable_grad, fl.inference_mode])
def test_contexts_may_be_used_again(make, outside):
    context = make()
    for _ in range(2):
        with context, context:
            assert fl.is_grad_enabled() == (make is fl.enable_grad)
        assert fl.is_grad_enabled() == outside


@pytest.mark.parametrize(("switch", "inside"), SWITCHES.values(), ids=SWITCHES)
def test_generators_switch_only_in_their_own_code(switch, inside, outside):
    told = []

    @switch
    def generate(count):
        sent = None
        try:
            for i in range(count):
                assert fl.is_grad_enabled() == inside
                try:
                    sent = yield i, sent
                except ValueError as error:
                    told.append(str(error))
                    assert fl.is_grad_enabled() == inside
        finally:
            told.append(fl.is_grad_enabled())
        return "end"

    def delegate():
        returned.append((yield from generate(2)))

    returned = []
    generator = generate(9)
    assert next(generator) == (0, None)
    assert fl.is_grad_enabled() == outside
    assert generator.send("word") == (1, "word")
    assert fl.is_grad_enabled() == outside
    assert generator.throw(ValueError("caught")) == (2, "word")
    assert fl.is_grad_enabled() == outside
    generator.close()
    assert told == ["caught", inside]
    for _ in delegate():
        assert fl.is_grad_enabled() == outside
    assert returned == ["end"]


def test_enable_grad_within_no_grad():
    x = fl.tensor([1.0], requires_grad=True)
    with fl.no_grad():
        assert not (x * 2).requires_grad
        with fl.enable_grad():
            y = x * 2
        assert y.requires_grad and not (x * 2).requires_grad
    y.backward()
    assert x.grad.tolist() == [2]


def test_what_is_computed_in_inference_mode_may_be_used_later():
    x = fl.tensor([3.0], requires_grad=True)
    with fl.inference_mode():
        y = x * 2
    assert not y.requires_grad
    (x * y).backward()
    assert x.grad.tolist() == [6]


def test_set_grad_enabled_holds_from_its_call(outside):
    for mode in (True, False):
        fl.set_grad_enabled(mode)
        assert fl.is_grad_enabled() == autograd.is_grad_enabled() == mode
    fl.set_grad_enabled(outside)


def test_set_grad_enabled_as_a_context_and_a_decorator(outside):
    for mode in (True, False):
        with fl.set_grad_enabled(mode):
            assert fl.is_grad_enabled() == mode
        assert fl.is_grad_enabled() == outside

        @fl.set_grad_enabled(mode)
        def call(mode=mode):
            assert fl.is_grad_enabled() == mode

        assert fl.is_grad_enabled() == outside  # as a decorator it changes nothing by itself
        call()
        assert fl.is_grad_enabled() == outside
