from sklearn.utils.estimator_checks import parametrize_with_checks
from featcache.heads.preprocessing import *
@parametrize_with_checks([SignedPower(), ShrunkWhitener(), ShrunkWhitener(n_components=0.9), CodeScaler(), CodeScaler(0.5,"l2","whiten"), CodeScaler(0.5,"l2","centre"), CodeScaler(scale="none")])
def test_checks(estimator, check): check(estimator)
from featcache.heads.searching import SearchedHead
@parametrize_with_checks([SearchedHead("ridge", cv=2), SearchedHead("logreg",cv=2,max_candidates=3), SearchedHead("centroid",cv=2, max_candidates=4)])
def test_checks2(estimator, check): check(estimator)
