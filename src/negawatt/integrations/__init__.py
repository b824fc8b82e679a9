"""Where people already look: energy in training loops, loggers, and CodeCarbon's files.

One module a library, each importing its own library and no other: `training` (a loop of your own),
`transformers`, `lightning`, `keras` (an ``EnergyCallback`` each), `logs` (TensorBoard, Weights & Biases,
MLflow), `codecarbon` (its tracker on this meter).
"""
