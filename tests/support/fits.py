"""Settings by which a tiny model learns a tiny task in seconds."""

from mp_model.training import Settings

QUICK = Settings(
    epochs=4,
    soft_epochs=2,
    exit_epochs=3,
    learning_rate=1e-3,
    temperature=5e-3,
    penalty=0.2,
    final_threshold=0.05,
    importance_normalizer="alive",
)
