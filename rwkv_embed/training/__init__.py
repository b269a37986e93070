"""How the bundled model was made, and fine-tuning."""
