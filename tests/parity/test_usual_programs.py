"""Programs as tutorials have them, with other imports: the same results as PyTorch's."""

import copy

import numpy as np
import pytest

import fastlayers as fl
import fastlayers.nn
import fastlayers.optim

torch = pytest.importorskip("torch")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(library, module):
    for i, p in enumerate(module.parameters()):
        p.data.copy_(library.from_numpy(0.3 * random(*p.shape, seed=i)))
    return module


def gan(lib):
    nn = lib.nn
    generator = filled(
        lib, nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2, True), nn.Linear(8, 6))
    )
    judge = filled(lib, nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 1)))
    loss = nn.BCEWithLogitsLoss()
    first, second = (lib.optim.Adam(m.parameters(), lr=1e-2) for m in (judge, generator))
    for i in range(2):
        real, noise = (lib.from_numpy(random(5, n, seed=i)) for n in (6, 4))
        label = lib.full((5,), 1.0)
        judge.zero_grad()
        on_real = loss(judge(real).view(-1), label)
        on_real.backward(retain_graph=True)
        fake = generator(noise)
        loss(judge(fake.detach()).view(-1), label.fill_(0.0)).backward()
        first.step()
        generator.zero_grad()
        loss(judge(fake).view(-1), label.fill_(1.0)).backward()
        second.step()
    return [*generator.parameters(), *judge.parameters(), on_real]


def averaged_states(lib):
    nn = lib.nn
    net = filled(lib, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    mean = copy.deepcopy(net)
    optimizer = lib.optim.SGD(net.parameters(), lr=0.1)
    for i in range(3):
        optimizer.zero_grad()
        net(lib.from_numpy(random(6, 3, seed=i))).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.step()
        state, other = mean.state_dict(), net.state_dict()
        mean.load_state_dict({key: 0.9 * state[key] + 0.1 * other[key] for key in state})
    return [*mean.state_dict().values(), nn.utils.parameters_to_vector(net.parameters())]


def layers_replaced_and_hooked(lib):
    nn = lib.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 3), nn.ReLU()
            self.more = nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), nn.Linear(3, 3))})
            self.scales = nn.ParameterList([nn.Parameter(lib.Tensor(3)) for _ in range(2)])

        def forward(self, x):
            return self.more["a"](self.act(self.fc(x)) * self.scales[0]) * self.scales[1]

    def replaced(module):
        for name, child in module._modules.items():
            module._modules[name] = nn.Tanh() if isinstance(child, nn.ReLU) else replaced(child)
        return module

    net, kept = replaced(filled(lib, Net())), []
    net.fc.register_forward_hook(lambda module, args, output: kept.append(output.detach()))
    net.scales[0].register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    net(lib.from_numpy(random(4, 3))).sum().backward()
    return [*kept, *(p.grad for p in net.parameters())]


def activation_in_place(lib):
    nn = lib.nn
    conv, act = filled(lib, nn.Conv2d(1, 2, 3)), nn.ReLU(inplace=True)
    norm = filled(lib, nn.BatchNorm2d(2))
    h = norm(conv(lib.from_numpy(random(2, 1, 5, 5))))
    act(h)
    out = act(conv(lib.from_numpy(random(2, 1, 5, 5, seed=1)))) * h + h
    out.sum().backward()
    return [out, *(p.grad for p in (*conv.parameters(), *norm.parameters()))]


@pytest.mark.parametrize(
    "program", [gan, averaged_states, layers_replaced_and_hooked, activation_in_place]
)
def test_program(program):
    for ours, theirs in zip(program(fl), program(torch), strict=True):
        ours, theirs = np.asarray(ours.detach()), theirs.detach().numpy()
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
