"""Batch normalisation written by hand, beside the layers, and a small network trained with it."""

import torch
import torch.nn as nn
import torch.optim as optim


def batch_norm(X, gamma, beta, moving_mean, moving_var, eps, momentum):
    if not torch.is_grad_enabled():  # evaluation
        X_hat = (X - moving_mean) / torch.sqrt(moving_var + eps)
    else:
        assert len(X.shape) in (2, 4)
        if len(X.shape) == 2:
            mean = torch.mean(X, dim=0)
            var = ((X - mean) ** 2).mean(dim=0)
        else:
            mean = torch.mean(X, dim=(0, 2, 3), keepdim=True)
            var = ((X - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        X_hat = (X - mean) / torch.sqrt(var + eps)
        moving_mean = (1.0 - momentum) * moving_mean + momentum * mean
        moving_var = (1.0 - momentum) * moving_var + momentum * var
    Y = gamma * X_hat + beta
    return Y, moving_mean.data, moving_var.data


class BatchNorm(nn.Module):
    def __init__(self, num_features, num_dims):
        super().__init__()
        shape = (1, num_features) if num_dims == 2 else (1, num_features, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.moving_mean = torch.zeros(shape)
        self.moving_var = torch.ones(shape)

    def forward(self, X):
        if self.moving_mean.device != X.device:
            self.moving_mean = self.moving_mean.to(X.device)
            self.moving_var = self.moving_var.to(X.device)
        Y, self.moving_mean, self.moving_var = batch_norm(
            X, self.gamma, self.beta, self.moving_mean, self.moving_var, eps=1e-5, momentum=0.1
        )
        return Y


torch.manual_seed(0)

# Two dimensions: the four lines of the formula.
x = torch.rand(1, 8)
print(x, x.size())
x = torch.rand(16, 10, requires_grad=True)
layer = nn.BatchNorm1d(10)
print(layer.weight.size() == torch.Size([10]), layer.bias.size())
mean = torch.mean(x, dim=0)
var = torch.var(x, dim=0, unbiased=False)
x_hat = (x - mean) / torch.sqrt(var + layer.eps)
by_hand = layer.weight * x_hat + layer.bias
print("1d:", torch.allclose(by_hand, layer(x), atol=1e-5))

(by_hand**2).sum().backward()
hand = x.grad.clone()
x.grad = None
(layer(x) ** 2).sum().backward()
print("gradients:", torch.allclose(hand, x.grad, atol=1e-4))

# Four: a mean for each channel.
X = torch.randn(8, 3, 6, 6)
layer = nn.BatchNorm2d(3)
print(X.size(), X.size(1))
mean = torch.mean(X, dim=(0, 2, 3)).reshape(1, 3, 1, 1)
var = torch.mean((X - mean) ** 2, dim=(0, 2, 3)).reshape(1, 3, 1, 1)
by_hand = (X - mean) / torch.sqrt(var + 1e-5)
print("2d:", torch.allclose(by_hand, layer(X), atol=1e-5))
unbiased = torch.var(X, dim=(0, 2, 3))
print("running:", torch.allclose(layer.running_mean, 0.1 * mean.reshape(-1), atol=1e-6))
print("running:", torch.allclose(layer.running_var, 0.9 + 0.1 * unbiased, atol=1e-5))
layer.eval()
scale = torch.sqrt(layer.running_var + layer.eps).view(1, 3, 1, 1)
shift = layer.running_mean.view(1, 3, 1, 1)
print("evaluation:", torch.allclose((X - shift) / scale, layer(X), atol=1e-5))

net = nn.Sequential(
    nn.Conv2d(1, 4, kernel_size=3),
    BatchNorm(4, num_dims=4),
    nn.ReLU(),
    nn.MaxPool2d(kernel_size=2, stride=2),
    nn.Flatten(),
    nn.Linear(4 * 3 * 3, 16),
    BatchNorm(16, num_dims=2),
    nn.ReLU(),
    nn.Linear(16, 2),
)
images = torch.randn(64, 1, 8, 8)
labels = (images.mean(dim=(1, 2, 3)) > 0).long()
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(net.parameters(), lr=0.1)
losses = []
for epoch in range(20):
    optimizer.zero_grad()
    loss = criterion(net(images), labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("trained:", losses[-1] < losses[0] / 2)
print(net[1].gamma.reshape((-1,)).size(), net[1].moving_mean.requires_grad)
