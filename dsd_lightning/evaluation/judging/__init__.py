"""Puts a method's images to a judge: rubrics, the protocol of turns, replies and the record of judgements."""
