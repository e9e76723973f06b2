"""dynamics: watch a training run, and know what it can bear.

Problem: how sharp is the loss compared with what the learning rate can bear,
does the training oscillate, in how many directions, are the layers balanced,
what rank have weights, gradients and updates? Equation: gradient descent with
learning rate ``lr`` is stable along an eigenvector of the Hessian H while
``lambda_max(H) < 2 / lr``; ``lambda_max`` is the sharpness. Input: any PyTorch
module, a scalar loss on a fixed probe batch, the optimizer. Output: numbers per
step, to any logger.
"""

__all__: list[str] = []
