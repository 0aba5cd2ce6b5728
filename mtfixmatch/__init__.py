"""One network for several tasks, trained on partially labeled datasets (a Detectron2 project)."""
