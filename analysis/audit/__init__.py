"""The recovery audit: does a small change of the residual stream bring back what ablating a set took away?"""
