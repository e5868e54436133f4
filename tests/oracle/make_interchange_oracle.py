"""Write interchange.npz and keras.weights.h5: networks of PyTorch and Keras with their logits.

Run by hand with PyTorch and Keras 3 installed:
``KERAS_BACKEND=torch python tests/oracle/make_interchange_oracle.py``. The test-suite reads the
files and needs neither.

interchange.npz: ``images`` (4, 3, 12, 12); ``torch/state/<name>`` and ``torch/logits`` (4, 5);
``keras/logits`` (4, 5) of the same network with Keras' epsilon; ``versions``. keras.weights.h5: as
Keras' save_weights wrote it.
"""

from pathlib import Path

import keras
import numpy as np
import torch
from keras import layers

FOLDER = Path(__file__).parent


def main() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 3, 12, 12)).astype(np.float32)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 6, (2, 3), stride=2), torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(6, 3, (3, 2), stride=2), torch.nn.Flatten(),
        torch.nn.Linear(60, 7, bias=False), torch.nn.BatchNorm1d(7), torch.nn.ReLU(),
        torch.nn.Linear(7, 5),
    )  # fmt: skip
    network(torch.from_numpy(images))  # moves the running statistics
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    arrays = {f"torch/state/{name}": value.numpy() for name, value in network.state_dict().items()}

    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((12, 12, 3)),
        layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(2),
        layers.Conv2D(6, (2, 3), strides=2, name="any_name"), layers.ReLU(),
        layers.Conv2DTranspose(3, (3, 2), strides=2), layers.Flatten(), layers.Dropout(0.5),
        layers.Dense(7, use_bias=False), layers.BatchNormalization(), layers.ReLU(),
        layers.Dense(5),
    ])  # fmt: skip
    for variable in model.variables:
        if "seed" not in variable.path:
            start = 0.5 if "variance" in variable.path else -0.5
            variable.assign(rng.uniform(start, start + 1, variable.shape))
    model.save_weights(FOLDER / "keras.weights.h5")
    keras_logits = model(np.moveaxis(images, 1, -1), training=False).detach().numpy()
    np.savez_compressed(
        FOLDER / "interchange.npz",
        images=images,
        **arrays,
        **{"torch/logits": logits, "keras/logits": keras_logits},
        versions=np.array([f"torch {torch.__version__}", f"keras {keras.__version__}"]),
    )


if __name__ == "__main__":
    main()
