"""What runs inside a training process: one module, one step.

A recipe is a program: `python -m finery.recipes.NAME --flag value …`.  It gets
paths as flags, writes to the paths given for its outputs, says on stdout what it
does, and ends with 0, 1 (it failed, one line says why) or 2 (the words were
wrong).  It knows nothing of the server; `finery/checkpoint.py` is all it shares.

The steps, in order, as the components of `catalog/` run them:

    chat_completion_*            validate, model_import, preprocess, finetune, convert, evaluate
    visual_question_answering_*  model_import, then vqa_preprocess, _finetune, _convert, _evaluate

`vqa_` before a name is what only pictures and questions need.  The other modules
serve these: what both tasks share (`splits`, `hyperparameters`, `training`, …) or
what is the chat's own (`conversations`, `packing`, `head`, …).
"""
