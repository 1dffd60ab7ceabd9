"""From a run to a model folder: merged or as it is, verified, with a model card.

job       a run folder, an adapter or a checkpoint → a folder that plain transformers loads
verify    what that folder holds, compared with the model that was trained and with the one that training began with
card      the model card
"""
