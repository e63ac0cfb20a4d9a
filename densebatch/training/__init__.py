"""Train a network on annotated and simulated images.

`train` takes the steps that a `recipe` describes, on `batches` of crops of `annotated` or
`simulated` images (`augmentation`, `pasting`), with `optimisers` and a teacher (`consistency`);
`progress` is what a checkpoint keeps. Pasting stays apart from augmentation: it works on two crops
and draws nothing from the recipe.
"""
