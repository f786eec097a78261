-- How well the factorisation machines and the linear probe tell target from control prompts (R9, R12), at their best epoch.
--
-- One row per model: the epoch that is best on validation, accuracy and loss (nats) there on each split, the features that it
-- learned from, and how the embeddings of two features differ. mean_abs_cosine is the mean size of their cosine, effective_rank the
-- number of directions that the embeddings use, first_direction the share of their energy in the first one. too_alike is the
-- paper's rule: it discards embeddings whose mean cosine is above 0.9, and here the size counts, since embeddings that lie on one
-- line in both directions have a signed mean (mean_cosine) near 0. Where too_alike is true, the cosine with a critical feature
-- says on which side of that line a feature lies, and nothing of what it has to do with this one.
--
-- $every_epoch boolean = false: a row for each epoch instead
with epochs as (
    select
        model,
        epoch,
        max(n_prompts) filter (where split = 'train') as n_train,
        max(n_prompts) filter (where split = 'test') as n_test,
        max(accuracy) filter (where split = 'train') as train_accuracy,
        max(accuracy) filter (where split = 'val') as val_accuracy,
        max(accuracy) filter (where split = 'test') as test_accuracy,
        max(loss) filter (where split = 'train') as train_loss,
        max(loss) filter (where split = 'val') as val_loss,
        max(loss) filter (where split = 'test') as test_loss
    from fm_metrics
    group by model, epoch
)

select
    e.model, m.size, e.epoch, e.epoch = m.best_epoch as best, e.n_train, e.n_test,
    e.train_accuracy, e.val_accuracy, e.test_accuracy, e.train_loss, e.val_loss, e.test_loss,
    m.n_features, m.n_untrained, m.mean_cosine, m.mean_abs_cosine, m.effective_rank, m.first_direction,
    m.mean_abs_cosine > 0.9 as too_alike
from epochs as e
join models as m on m.model = e.model
where $every_epoch or e.epoch = m.best_epoch
order by m.size, e.model, e.epoch
