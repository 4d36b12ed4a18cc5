"""Losses and a network with a skip connection, as people write them themselves."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim


class FocalLoss(nn.Module):
    def __init__(self, alpha=0.25, gamma=2.0):
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits, targets):
        bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        p_t = torch.exp(-bce)
        alpha_t = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (alpha_t * (1 - p_t) ** self.gamma * bce).mean()


class DiceLoss(nn.Module):
    def __init__(self, smooth=1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, logits, targets):
        probs = torch.sigmoid(logits).view(logits.size(0), -1)
        targets = targets.view(targets.size(0), -1)
        intersection = (probs * targets).sum(dim=1)
        union = probs.sum(dim=1) + targets.sum(dim=1)
        dice = (2.0 * intersection + self.smooth) / (union + self.smooth)
        return 1 - dice.mean()


def multiclass_focal(logits, labels, gamma=2.0):
    log_p = F.log_softmax(logits, dim=1)
    log_p = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


class TinyUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True))
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x):
        skip = self.down(x)
        y = self.middle(F.max_pool2d(skip, 2))
        y = y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return self.out(torch.cat([y, skip], dim=1))


torch.manual_seed(0)
images = torch.rand(8, 1, 16, 16)
masks = (images > 0.5).float()
model = TinyUNet()
focal, dice = FocalLoss(), DiceLoss()
optimizer = optim.Adam(model.parameters(), lr=0.02)
first = last = None
for step in range(30):
    optimizer.zero_grad()
    logits = model(images)
    loss = focal(logits, masks) + dice(logits, masks)
    loss.backward()
    total = 0.0
    for p in model.parameters():
        total += p.grad.norm(2).item() ** 2
    optimizer.step()
    first = loss.item() if first is None else first
    last = loss.item()
print(f"trained: {last < 0.7 * first}, gradient: {total**0.5 > 0}")

with torch.no_grad():
    predicted = (torch.sigmoid(model(images)) > 0.5).float()
    union = ((predicted + masks) > 0).sum().item()
    print(f"IoU above a half: {(predicted * masks).sum().item() / union > 0.5}")

logits = torch.randn(6, 3, requires_grad=True)
labels = torch.randint(0, 3, (6,))
loss = multiclass_focal(logits, labels, gamma=0.0)
print("focal of gamma 0:", torch.allclose(loss, F.cross_entropy(logits, labels), atol=1e-6))
one_hot = F.one_hot(labels, num_classes=3).float()
by_hand = -(one_hot * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
print("by one-hot labels:", torch.allclose(by_hand, loss, atol=1e-6))
